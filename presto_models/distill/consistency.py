"""Consistency distillation (2303.01469): a network that maps any point of the guided teacher's ODE to its clean end.

With t > u two neighbouring levels of Karras' table, f the student, f- its moving average and d a distance:

    x_t = x0 + t eps,    x_u = Heun(x_t, t -> u),    L = d(f(x_t; t), sg f-(x_u; u)),    f(x; sigma_min) = x

Heun's step is the teacher's with classifier-free guidance, so that the student needs none: the scale is fixed and
baked into the student, or drawn for each sample and told to it (the students of DITTO-2, 2405.20289, are of this kind).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from presto_models.conditioning import Conditioning
from presto_models.diffusion import EDM, karras_sigmas
from presto_models.diffusion.sampling import Sampling
from presto_models.diffusion_config import DiffusionConfig
from presto_models.distill.draws import check_strata, stratified
from presto_models.distill.ode import guided, heun_step
from presto_models.distill.target import Target
from presto_models.distill.task import DistillBatch, DistillConfig, DistillTask
from presto_models.training.audio import signed
from presto_models.training.seeding import derived_seed, generator, seeded_weights
from presto_models.training.task import DivergedError, Player, shares

Drawn = tuple[list[float], dict[str, float], float]  # the teacher's walk, other levels by name, the guidance's scale
QUIET, LOUD = 0.1, 10.0  # the student's estimate against the latents' standard deviation


@dataclass(frozen=True)
class ConsistencyConfig(DistillConfig):
    """What a consistency model's run computes.

    Args:
        levels: how many noise levels the table has, from the teacher's sigma_max to its sigma_min.
        guidance: the range the scale of the teacher's guidance is drawn from, evenly, for each sample; equal ends: a
            fixed scale, which the student is not told.
        target_decay: of the moving average that the student is compared with.
        distance: "l2": the mean of squares; "huber": sqrt(mean of squares + c^2) - c (2310.14189).
        huber: c.
        strata: noise levels are drawn evenly from this many equal parts of the table in turn.
    """

    levels: int = 40
    guidance: tuple[float, float] = (3.0, 3.0)
    target_decay: float = 0.95
    distance: Literal["l2", "huber"] = "l2"
    huber: float = 5.4e-4
    strata: int = 2

    def __post_init__(self) -> None:
        low, high = self.guidance
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, a noise level and the one below it; got {self.levels}")
        if not 0 <= low <= high < math.inf:
            raise ValueError(f"guidance must be a range from low to high, both at least 0, got {self.guidance}")
        if not 0 <= self.target_decay < 1:
            raise ValueError(f"target_decay must be in [0, 1), got {self.target_decay}")
        if self.distance not in ("l2", "huber"):
            raise ValueError(f"distance must be l2 or huber, got {self.distance!r}")
        if not self.huber > 0:
            raise ValueError(f"huber must be positive, got {self.huber}")

    @property
    def told(self) -> bool:
        """Whether the student is told the scale of guidance."""
        return self.guidance[0] < self.guidance[1]


@dataclass
class ConsistencyBatch(DistillBatch):
    """``path`` ``[B, 1 + solver steps]``: the noise levels the teacher walks down; ``guidance`` ``[B]``: its scale."""

    path: Tensor = field(default_factory=lambda: torch.empty(0))
    guidance: Tensor = field(default_factory=lambda: torch.empty(0))


def distance(config: ConsistencyConfig, a: Tensor, b: Tensor) -> Tensor:
    """d ``[B]`` of two ``[B, N, C]``; a mean over positions and channels, so that it does not depend on the length."""
    squares = (a - b).square().mean((1, 2))
    return squares if config.distance == "l2" else (squares + config.huber**2).sqrt() - config.huber


class ConsistencyTask(DistillTask):
    """What CM and CTM share: the table, the guided teacher's walk along it, the target that follows the student.

    Subclasses say which levels of ``self.table``, falling ones and then 0, are drawn (:meth:`draw`) and what the
    losses are (:meth:`losses`); they set ``self.student`` and call :meth:`play`.
    """

    def __init__(self, config: ConsistencyConfig) -> None:
        super().__init__(config)
        check_strata(config.crops, config.strata, accumulate=1)  # all blocks run in any micro-batch
        sampling = self.teacher.config.sampling
        self.lowest = sampling.sigma_min
        self.table = karras_sigmas(
            config.levels, sigma_min=sampling.sigma_min, sigma_max=sampling.sigma_max, rho=sampling.rho
        )
        self._followed = -1

    def play(self, module: nn.Module) -> None:
        """Take ``module``, which has ``student`` and ``target``, as what is trained."""
        self.loss_module: Any = module
        self.players = (Player("student", module),)

    @abstractmethod
    def draw(self, quantile: float, random: torch.Generator) -> tuple[list[float], dict[str, float]]:
        """The levels of the teacher's walk from a place in the table, 0 the noisiest, 1 the cleanest; other levels."""

    def batch(self, step: int, part: int, parts: int) -> ConsistencyBatch:
        config = self.config
        kind, _, mine = self.music.share(step, part, parts)
        drawn = []
        for sample in mine:
            random = generator(self.seed, "levels", step, sample)
            drawn.append(self._drawn(stratified(sample, config.strata, random), random))
        return _with_levels(self.batch_of(kind, step, mine, {}), drawn)

    @torch.no_grad()
    def walked(self, batch: ConsistencyBatch, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """(x_t, x_u): noisy latents, and where the guided teacher's steps along ``path`` bring them."""
        x = start = batch.noised(batch.clean, batch.path[:, 0], 0)
        with self.low_precision():
            denoise = guided(self.real, conditioning, batch.guidance)
            for sigma, sigma_next in pairwise(batch.path.unbind(1)):
                x = heun_step(denoise, x, sigma, sigma_next, lowest=self.lowest)
        return start, x

    def follow(self, step: int) -> None:
        """Move the target, once a step however many micro-batches there are."""
        if step != self._followed:
            self.loss_module.target.follow(self.student)
            self._followed = step

    def watch(self, step: int, means: Mapping[str, float]) -> None:
        amplitude = means["amplitude"]
        if not QUIET <= amplitude <= LOUD:
            raise DivergedError(
                f"step {step}: the student's estimates have {amplitude:.3g} times the latents' standard deviation, so "
                f"it has {'collapsed' if amplitude < QUIET else 'blown up'}; go on from an earlier checkpoint with a "
                "lower train.learning_rate, a target_decay nearer to 1, or less guidance"
            )

    def held_out(self, samples: list[int]) -> ConsistencyBatch:
        """Validation crops with levels spread evenly over the table and the same draws every time."""
        count = self.config.validation_crops
        drawn = [self._drawn((i + 0.5) / count, generator(0, "validation levels", i)) for i in samples]
        seeds = signed([derived_seed(0, "validation", sample) for sample in samples])
        batch = DistillBatch(**vars(self.music.validation(samples)), seeds=seeds, sigmas={})
        return _with_levels(batch, drawn).to(self.device)

    def validate(self, rank: int, world: int) -> dict[str, tuple[Tensor, Tensor]]:
        """The losses with the averaged weights, and how far four steps' latents are from held-out ones."""
        config = self.config
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for samples, counts in shares(config.validation_crops, rank, world, max(1, config.crops[0].batch // world)):
            for name, losses in self.losses(self.loss_module, self.held_out(samples)).items():
                total, number = sums.get(name, (torch.zeros(()), torch.zeros(())))
                sums[name] = total + (losses.cpu() * counts).sum(), number + counts.sum()
        # Every process measures all of it: the mean over them is the distance.
        return sums | {"latent_distance": (torch.tensor(self.latent_distance()), torch.ones(()))}

    @abstractmethod
    def losses(self, module: nn.Module, batch: ConsistencyBatch) -> dict[str, Tensor]:
        """Each named loss ``[B]``; sets ``batch.seen``."""

    def few_steps(self, sampler: str) -> Sampling:
        """Four steps; with the teacher's scale, held to the range, for a student that is told it."""
        low, high = self.config.guidance
        sampling = self.teacher.config.sampling
        guidance = min(max(sampling.guidance, low), high) if self.config.told else 1.0
        return replace(sampling, sampler=sampler, steps=4, guidance=guidance, spacing="interval")

    def described(self) -> DiffusionConfig:
        baked = None if self.config.told else self.config.guidance[0]
        return replace(super().described(), guidance_baked=baked)

    def shard(self, module: nn.Module, mesh: Any) -> nn.Module:
        raise ValueError(
            "strategy fsdp2 cannot hold a consistency model's target, which every process has whole: use ddp"
        )

    def _drawn(self, quantile: float, random: torch.Generator) -> Drawn:
        path, others = self.draw(quantile, random)
        low, high = self.config.guidance
        return path, others, low + float(torch.rand((), generator=random)) * (high - low)


def _with_levels(batch: DistillBatch, drawn: list[Drawn]) -> ConsistencyBatch:
    paths, others, scales = zip(*drawn, strict=True)
    path = torch.tensor(paths)
    sigmas = {"t": path[:, 0], "u": path[:, -1]}
    sigmas |= {name: torch.tensor([other[name] for other in others]) for name in others[0]}
    return ConsistencyBatch(**(vars(batch) | {"sigmas": sigmas}), path=path, guidance=torch.tensor(scales))


class ConsistencyLoss(nn.Module):
    """(d(f(x_t; t), f-(x_u; u)), mean square of f) of each sample, ``[B]`` both."""

    def __init__(self, config: ConsistencyConfig, student: EDM) -> None:
        super().__init__()
        self.config, self.student, self.target = config, student, Target(student, config.target_decay)

    def forward(
        self, x_t: Tensor, t: Tensor, x_u: Tensor, u: Tensor, conditioning: Conditioning, guidance: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        estimate = self.student(x_t, t, conditioning, guidance=guidance)
        with torch.no_grad():
            target = self.target.edm(x_u, u, conditioning, guidance=guidance)
        return distance(self.config, estimate, target), estimate.detach().square().mean((1, 2))


class ConsistencyModel(ConsistencyTask):
    """A consistency model of the teacher: one call gives clean latents, several with new noise between better ones."""

    parameterization = "cm"

    def __init__(self, config: ConsistencyConfig) -> None:
        super().__init__(config)
        self.table = self.table[:-1]  # down to sigma_min, where it is x itself
        with seeded_weights(self.seed):
            copy = self.teacher.student(takes_guidance=config.told)
        self.student = EDM(copy.dit, copy.sigma_data, boundary_sigma=self.lowest)
        self.play(ConsistencyLoss(config, self.student))

    def draw(self, quantile: float, random: torch.Generator) -> tuple[list[float], dict[str, float]]:
        index = int(quantile * (len(self.table) - 1))
        return list(self.table[index : index + 2]), {}

    def loss(self, player: Player, module: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        self.follow(step)
        loss = self.losses(module, batch)["consistency"].mean()
        amplitude = batch.seen["mean square"].mean().sqrt() / self.student.sigma_data
        return loss, {"amplitude": amplitude}

    def losses(self, module: nn.Module, batch: ConsistencyBatch) -> dict[str, Tensor]:
        conditioning = self.condition(batch)
        x_t, x_u = self.walked(batch, conditioning)
        guidance = batch.guidance if self.config.told else None
        with self.low_precision():
            losses, squares = module(x_t, batch.sigmas["t"], x_u, batch.sigmas["u"], conditioning, guidance)
        batch.seen = {"loss": losses.detach(), "mean square": squares}
        return {"consistency": losses}

    def sampling(self) -> Sampling:
        return self.few_steps("pingpong")
