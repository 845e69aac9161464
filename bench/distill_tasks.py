"""The distillation methods as they are trained, on a teacher of random weights and music of random latents.

Everything is the product's own task: how it draws noise levels and budgets, what each player's loss computes. Only the
teacher and the music come from here and not from files, and inside every denoiser the transformer can be exchanged:
presto's, or plain PyTorch's on the very same parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from bench import checks, cuda, measure
from bench.generation import TEXT_TOKENS
from bench.names import COMPILE, PRESTO, REFERENCE
from presto_kernels.testing import within
from presto_models import Conditioning, DiT, DiTConfig, ReferenceDiT, randomize_weights
from presto_models.diffusion import EDM
from presto_models.diffusion.sampling import Sampling
from presto_models.diffusion_config import DiffusionConfig
from presto_models.distill.consistency import ConsistencyConfig, ConsistencyModel
from presto_models.distill.dmd import PrestoLS, PrestoS, StepConfig
from presto_models.distill.layers import LayerConfig, PrestoL
from presto_models.distill.task import DistillBatch, DistillTask
from presto_models.distill.teacher import Teacher
from presto_models.distill.trajectory import ConsistencyTrajectoryModel, TrajectoryConfig
from presto_models.text import Conditioner
from presto_models.training.config import build, read
from presto_models.training.examples import CropConfig, Examples, MusicCrops
from presto_models.training.seeding import generator
from presto_models.training.task import Player

METHODS: dict[str, tuple[type[Any], type[DistillTask]]] = {
    "presto-l": (LayerConfig, PrestoL),
    "ase": (LayerConfig, PrestoL),
    "presto-s": (StepConfig, PrestoS),
    "presto-ls": (StepConfig, PrestoLS),
    "cm": (ConsistencyConfig, ConsistencyModel),
    "ctm": (TrajectoryConfig, ConsistencyTrajectoryModel),
}
CONFIGS = ("presto-tiny", "presto-32s", "tiny")
GUIDANCE = 3.0  # presto-tiny's own: the teacher is asked with and without the text
WIDE = "wide"
# What a result may differ by beside twice plain PyTorch's own error. fp32 gradients sum over all positions in an order
# that is free, which costs a few ulps more where a sum nearly cancels.
EPS = {"bf16": torch.finfo(torch.bfloat16).eps, "fp32": 8 * torch.finfo(torch.float32).eps}
SEEN = 32  # so many steps are looked at for one with a typical share of kept blocks


@dataclass(frozen=True)
class Sizes:
    """How large a method's task is: model sizes by name, fewer blocks, another batch or length, precision."""

    config: str
    blocks: int | None = None
    batch: int | None = None
    latents: int | None = None
    precision: str = "bf16"

    @property
    def dit(self) -> DiTConfig:
        preset = self.config == "presto-tiny"
        dit = DiTConfig(**read("presto-tiny", "diffusion")["model"]) if preset else DiTConfig.named(self.config)
        return replace(dit, num_blocks=self.blocks or dit.num_blocks)

    def method(self, name: str) -> Any:
        """The method's config: its preset for presto-tiny in everything but the crops, of which there is one kind.

        At presto-tiny's sizes that is the preset's first; elsewhere four samples of the config's nominal length.
        """
        config = build(METHODS[name][0], read("presto-tiny", name))
        first = config.crops[0] if self.config == "presto-tiny" else CropConfig(self.dit.nominal_latents, 4)
        crop = CropConfig(self.latents or first.latents, self.batch or first.batch)
        return replace(config, crops=(crop,), train=replace(config.train, precision=self.precision))


@dataclass(frozen=True)
class TextSizes:
    """What a conditioner asks of a text encoder whose captions are embedded already."""

    text_dim: int
    pooled_dim: int
    max_tokens: int = TEXT_TOKENS


class RandomMusic(MusicCrops):
    """Normal latents, normal text of one to all tokens."""

    def __init__(self, dit: DiTConfig, crops: Sequence[CropConfig], *, seed: int, sigma_data: float) -> None:
        self.dit, self.kinds, self.seed, self.sigma_data = dit, tuple(crops), seed, sigma_data

    def draw(self, kind: int, step: int, samples: Sequence[int]) -> Examples:
        random, size = generator(self.seed, "music", step), len(samples)
        clean = torch.randn(size, self.kinds[kind].latents, self.dit.in_channels, generator=random)
        tokens = torch.randn(size, TEXT_TOKENS, self.dit.text_dim, generator=random)
        pooled = torch.randn(size, self.dit.pooled_dim, generator=random) if self.dit.pooled_dim else None
        lengths = torch.randint(1, TEXT_TOKENS + 1, (size,), generator=random)
        text = Conditioning(tokens, pooled, lengths)
        return Examples(self.sigma_data * clean, text, [None] * size, [f"sample {sample}" for sample in samples])


def make_task(method: str, sizes: Sizes) -> DistillTask:
    """The method's task. Every trained net has random weights of its own, since with equal ones much cancels."""
    kind = METHODS[method][1]

    class Task(kind):  # type: ignore[valid-type,misc]
        def load(self) -> None:
            dit = DiT(sizes.dit)
            randomize_weights(dit)
            dit.eval().requires_grad_(False)
            zeros, ones = (0.0,) * sizes.dit.in_channels, (1.0,) * sizes.dit.in_channels
            config = DiffusionConfig(sizes.dit, zeros, ones, sampling=Sampling(guidance=GUIDANCE))
            text: Any = TextSizes(sizes.dit.text_dim, sizes.dit.pooled_dim)
            self.teacher = Teacher("random weights", config, dit, Conditioner(text))
            crops = self.config.crops
            self.music = RandomMusic(sizes.dit, crops, seed=self.seed, sigma_data=config.sigma_data)
            self.autoencoder = None

    task = Task(sizes.method(method))
    for seed, edm in enumerate(denoisers(task)):
        if edm is not task.real and next(edm.dit.parameters(), None) is not None:  # a moving average has none
            randomize_weights(edm.dit, seed=seed + 1)
    return task


def denoisers(task: DistillTask) -> list[EDM]:
    """Every denoiser of the task, trained or not, once."""
    roots = [*(player.module for player in task.players), task.real]
    found = (part for root in roots for part in root.modules() if isinstance(part, EDM))
    return list(dict.fromkeys(found))


class PlainDiT(ReferenceDiT):
    """Plain PyTorch's DiT, also for batches of mixed budgets.

    What one writes without a path for them: the samples of one budget are a batch of their own, so that it does no more
    blocks' work than presto's sorted prefix.
    """

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        *,
        budgets: Sequence[int] | None = None,
        **others: Any,
    ) -> Tensor | tuple[Tensor, ...]:
        if budgets is None:
            return super().forward(x, sigma, conditioning, **others)
        depth, last = self.config.num_blocks, self.config.keep_last
        outputs, first = [], 0
        for budget, samples in groupby(budgets):
            rows = slice(first, first + len(list(samples)))
            kept = (*range(budget - last), *range(depth - last, depth))
            outputs.append(super().forward(x[rows], sigma[rows], conditioning[rows], blocks=kept, **others))
            first = rows.stop
        return torch.cat(outputs)


def plain_of(dit: nn.Module) -> PlainDiT:
    """The plain model on the parameters (or buffers) of ``dit``, trained where those are."""
    with torch.device("meta"):
        plain = PlainDiT(dit.config)  # type: ignore[arg-type]
    weights = dit.state_dict(keep_vars=True)
    for name, weight in plain.named_parameters():
        weight.requires_grad_(weights[name].requires_grad)  # assigning carries this flag over to what is assigned
    plain.load_state_dict(weights, assign=True)
    return plain


def wide_of(plain: PlainDiT, dtype: torch.dtype) -> PlainDiT:
    """A copy in a wider dtype with gradients of its own."""
    with torch.device("meta"):
        wide = PlainDiT(plain.config)
    weights = {name: weight.detach().to(dtype) for name, weight in plain.state_dict().items()}
    for name, weight in plain.named_parameters():
        wide.get_parameter(name).requires_grad_(weight.requires_grad)
    wide.load_state_dict(weights, assign=True)
    return wide


class Training:
    """A method's task on a device, one typical batch of it, and a turn of any of its players by any implementation.

    A turn is loss and gradients; clipping, the optimiser's step and the moving averages are the same on both sides and
    are left out.

    Attributes:
        kept_share: of the blocks, in what is trained on this batch; None where the method drops none.
    """

    def __init__(self, method: str, sizes: Sizes, device: torch.device) -> None:
        self.method, self.sizes, self.task = method, sizes, make_task(method, sizes)
        self.task.to(device)
        for player in self.task.players:
            player.module.to(device)
        batch = typical(self.task, sizes.dit.num_blocks)
        self.batch, self.kept_share = batch.to(device), share_of(batch, sizes.dit.num_blocks)
        self.edms = denoisers(self.task)
        fused = [edm.dit for edm in self.edms]
        self.nets: dict[str, list[nn.Module]] = {PRESTO: fused, REFERENCE: [plain_of(dit) for dit in fused]}
        for player in self.task.players:
            self.turn(PRESTO, player)  # what is done once a step (a target's move) is done before anything is timed

    @property
    def turns(self) -> dict[str, Player]:
        """Name to player, in the order of a step."""
        return {player.name: player for player in self.task.players}

    def compile(self) -> None:
        """Adds torch.compile of the reference."""
        plain = self.nets[REFERENCE]
        self.nets[COMPILE] = [torch.compile(dit, dynamic=False, fullgraph=True) for dit in plain]  # type: ignore[misc]

    @contextmanager
    def implementation(self, name: str) -> Iterator[None]:
        """The transformers of this name inside the task's denoisers; presto's again afterwards."""
        self._exchange(name)
        try:
            yield
        finally:
            self._exchange(PRESTO)

    def turn(self, name: str, player: Player, module: nn.Module | None = None, **changes: Any) -> Tensor:
        """A player's loss, which is returned, and its gradients, the old ones dropped first.

        ``module``: instead of the player's own; ``changes``: of the batch.
        """
        module = module or player.module
        with self.implementation(name):
            for parameter in module.parameters():
                parameter.grad = None
            batch = replace(self.batch, **changes) if changes else self.batch
            loss, _ = self.task.loss(player, module, batch, 0)
            loss.backward()
        return loss.detach()

    def results(self, name: str, player: Player, module: nn.Module | None = None, **changes: Any) -> dict[str, Tensor]:
        """The loss of a turn and the gradient of every parameter that is trained, by name; 0 where it has none."""
        loss = self.turn(name, player, module, **changes)
        with self.implementation(name):
            trained = [(n, p) for n, p in (module or player.module).named_parameters() if p.requires_grad]
            zeros = {f"d {name}": torch.zeros_like(p) for name, p in trained if p.grad is None}
            return {"loss": loss} | zeros | {f"d {name}": p.grad for name, p in trained if p.grad is not None}

    @contextmanager
    def oracle(self) -> Iterator[str]:
        """The reference in a wider dtype, as one more implementation: fp32 for bf16, float64 networks for fp32."""
        task = self.task
        low, task.low = task.low, False
        plain: Any = self.nets[REFERENCE]
        self.nets[WIDE] = plain if low else [wide_of(dit, torch.float64) for dit in plain]
        try:
            yield WIDE
        finally:
            task.low = low
            del self.nets[WIDE]

    def _exchange(self, name: str) -> None:
        for edm, dit in zip(self.edms, self.nets[name], strict=True):
            edm.dit = dit


def share_of(batch: DistillBatch, depth: int) -> float | None:
    """The share of blocks that a batch keeps."""
    return None if batch.budgets is None else sum(batch.budgets) / (depth * len(batch.budgets))


def typical(task: DistillTask, depth: int) -> DistillBatch:
    """Of the first steps' batches the one whose share of kept blocks is nearest to their mean; on the CPU."""
    batch: DistillBatch = task.batch(0, 0, 1)
    if batch.budgets is None:
        return batch
    batches = [batch, *(task.batch(step, 0, 1) for step in range(1, SEEN))]
    shares = [share_of(batch, depth) or 0.0 for batch in batches]
    mean = sum(shares) / len(shares)
    return batches[min(range(SEEN), key=lambda step: abs(shares[step] - mean))]


def check(training: Training, player: Player, **turn: Any) -> Exception | None:
    """The loss and every parameter's gradient against wider networks, plain PyTorch in the same precision the measure.

    `turn`: as for :meth:`Training.turn`.
    """
    try:
        plain = training.results(REFERENCE, player, **turn)
        ours = training.results(PRESTO, player, **turn)
        with training.oracle() as wide:
            expected = training.results(wide, player, **turn)
        if not ours.keys() == plain.keys() == expected.keys():
            raise checks.WrongResult(f"{PRESTO}: gradients of other parameters than plain PyTorch's")
        eps = EPS[training.sizes.precision]
        outcomes = [
            within(name, ours[name], oracle, plain[name], rowwise=False, eps=eps) for name, oracle in expected.items()
        ]
        wrong = [str(outcome) for outcome in outcomes if not outcome.ok]
        if wrong:
            raise checks.WrongResult(f"{PRESTO}: {'; '.join(wrong)}")
    except Exception as error:
        return error
    return None


def timer_of(device: torch.device) -> Callable[[Callable[[], object]], measure.Measure]:
    return cuda.event_timer if device.type == "cuda" else measure.cpu_timer
