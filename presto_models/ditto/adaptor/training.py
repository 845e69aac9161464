"""`train adaptor`: a frozen diffusion model taught to follow control signals, by a small network beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from presto_models.autoencoders import load_autoencoder
from presto_models.checkpoint import find_folder
from presto_models.data.latents import LatentDataset
from presto_models.diffusion import EDM, TrainingSigmas, edm_loss, initial_noise
from presto_models.distill.cli import DistillOptions
from presto_models.distill.teacher import Teacher
from presto_models.ditto.adaptor.gain import KNOTS, with_gain
from presto_models.ditto.adaptor.model import FILE, AdaptedDiT, Adaptor, AdaptorConfig, check_controls, save_adaptor
from presto_models.ditto.adaptor.signals import CONTROLS, WIDTH, clip_signals
from presto_models.ditto.features.loudness import FLOOR
from presto_models.training.audio import signed
from presto_models.training.cli import train
from presto_models.training.config import TrainConfig
from presto_models.training.examples import CropConfig, DropConfig, Examples, MusicCrops
from presto_models.training.seeding import derived_seed, generator, seeded_weights
from presto_models.training.task import Player, Task, shares


@dataclass(frozen=True)
class AdaptorTrainConfig:
    """What ``train adaptor`` computes.

    Args:
        teacher: a shipped checkpoint's name, a folder or a hub id; it needs an autoencoder.
        data: folder of latents encoded with the teacher's autoencoder (``data encode``).
        controls: what to follow, of ``"loudness"`` and ``"melody"``.
        drop: how often each control is dropped; where all of them would be, one stays, so that a sample of no control,
            which teaches nothing, never comes.
        partial: how often what a sample is asked holds for a random stretch of the crop only.
        gain: how often a sample's music is brought to another loudness, by a gain of random dB in ``gain_db`` at three
            moments and linear between them.  Rendered music hardly changes in loudness (which tells 1.5 % of the
            variance of our latents, melody 18 %), so there is little to learn from it as it is.  Ours.
        dim, mlp_dim, num_blocks, kernel_size: of the adaptor, see :class:`AdaptorConfig`.
        crops: the kinds of batches; batch counts all processes and micro-batches together.
        drops: how often a sample's text and tags are dropped, as in the teacher's own training.
        p_mean, p_std: of ln(sigma), for a sigma_data of 0.5; the mean is above EDM's, since loudness and melody are
            settled where there is much noise (our choice).
        validation_crops: how many held-out crops, of the first kind's length.
    """

    teacher: str = "presto-tiny"
    data: str = "data/latents"
    controls: tuple[str, ...] = CONTROLS
    drop: float = 0.5
    partial: float = 0.25
    gain: float = 0.25
    gain_db: tuple[float, float] = (-24.0, 3.0)
    dim: int = 256
    mlp_dim: int = 512
    num_blocks: int = 4
    kernel_size: int = 7
    crops: tuple[CropConfig, ...] = (CropConfig(),)
    drops: DropConfig = field(default_factory=DropConfig)
    p_mean: float = 0.0
    p_std: float = 1.4
    validation_crops: int = 32
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_controls(self.controls)
        for name in ("drop", "partial", "gain"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not -80 <= self.gain_db[0] <= self.gain_db[1] <= 20:
            raise ValueError(f"gain_db must be (lowest, highest) between -80 and 20, got {self.gain_db}")


@dataclass
class SignalExamples(Examples):
    """Examples with their signals ``[B, N, 13]``."""

    signals: Tensor


@dataclass
class AdaptorBatch(SignalExamples):
    """What is asked for where, ``[B, N, 2]``, noise levels and noise seeds ``[B]``, and afterwards losses ``[B]``."""

    given: Tensor
    sigma: Tensor
    seeds: Tensor
    losses: Tensor | None = None


class SignalCrops(MusicCrops):
    """Crops of music with the signals of what they sound like."""

    known: Mapping[str, Tensor]

    def _collate(
        self, drawn: Sequence[tuple[dict[str, Any], str, bool]], source: LatentDataset | None = None
    ) -> SignalExamples:
        examples = super()._collate(drawn, source)
        rows = [self._signals(name, crop) for name, (crop, _, _) in zip(examples.names, drawn, strict=True)]
        return SignalExamples(**vars(examples), signals=torch.stack(rows))

    def _signals(self, name: str, crop: Mapping[str, Any]) -> Tensor:
        """``[N, 13]``, fp32; behind a clip's end silence."""
        own = self.known[name][crop["start"] : crop["start"] + crop["valid"]].float()
        silence = torch.zeros(len(crop["latents"]) - len(own), WIDTH)
        silence[:, 0] = FLOOR
        return torch.cat((own, silence))


class AdaptorTask(Task):
    """EDM's denoising loss of a frozen teacher with an adaptor beside it, told what the music it is to restore does."""

    def __init__(self, config: AdaptorTrainConfig) -> None:
        self.config, self.seed = config, config.train.seed
        self.low, self.device = config.train.precision == "bf16", torch.device("cpu")
        self.teacher = Teacher.load(config.teacher)
        described, self.conditioner = self.teacher.config, self.teacher.conditioner
        if described.parameterization != "edm" or described.dit.takes_guidance or described.schedule is not None:
            raise ValueError(f"teacher {config.teacher!r} is a distilled student; give the model it came from")
        self.sigmas = TrainingSigmas(config.p_mean, config.p_std).for_sigma_data(described.sigma_data)
        mean, std = self.teacher.normalisation()
        self.music = SignalCrops(
            config.data,
            crops=config.crops,
            drops=config.drops,
            seed=self.seed,
            encoder=self.conditioner.cache.encoder,
            sigma_data=described.sigma_data,
            validation_crops=config.validation_crops,
            mean=mean,
            std=std,
        )
        self.teacher.check_latents(config.data, self.music.train.mean)
        if self.conditioner.tags is not None:
            self.music.vocabulary = self.conditioner.tags.vocabulary
        self.autoencoder = load_autoencoder(find_folder(config.teacher))  # stays on the CPU, where batches are made
        self.music.known = clip_signals((self.music.train, self.music.held_out), self.autoencoder)
        with seeded_weights(self.seed):
            self.adaptor = Adaptor(
                AdaptorConfig(
                    in_channels=described.dit.in_channels,
                    out_dim=described.dit.dim,
                    controls=config.controls,
                    dim=config.dim,
                    mlp_dim=config.mlp_dim,
                    num_blocks=config.num_blocks,
                    kernel_size=config.kernel_size,
                )
            )
        self.players = (Player("adaptor", self.adaptor),)

    def batch(self, step: int, part: int, parts: int) -> AdaptorBatch:
        kind, size, mine = self.music.share(step, part, parts)
        examples: Any = self.music.draw(kind, step, mine)
        for row, sample in enumerate(mine):
            self._regain(examples, row, generator(self.seed, "gain", step, sample))
        sigma = self.sigmas.sample(size, generator=generator(self.seed, "sigma", step))[mine.start : mine.stop]
        given = torch.stack([self._given(examples.clean.shape[1], step, sample) for sample in mine])
        return _batch(examples, given, sigma, [derived_seed(self.seed, "noise", step, sample) for sample in mine])

    def _regain(self, examples: SignalExamples, row: int, random: torch.Generator) -> None:
        """Bring a sample to another loudness, or leave it, in place."""
        chance, *knots = torch.rand(1 + KNOTS, generator=random).tolist()
        if chance >= self.config.gain:
            return
        low, high = self.config.gain_db
        (mean, std), sigma_data = self.teacher.normalisation(), self.teacher.config.sigma_data
        latents, told = with_gain(
            self.autoencoder,
            examples.clean[row] / sigma_data * std + mean,
            low + (high - low) * torch.tensor(knots),
        )
        examples.clean[row], examples.signals[row] = (latents - mean) / std * sigma_data, told

    def _given(self, length: int, step: int, sample: int) -> Tensor:
        """What a sample is told, ``[N, 2]``."""
        random = generator(self.seed, "controls", step, sample)
        trained = self.config.controls
        kept = torch.rand(len(trained), generator=random) >= self.config.drop
        kept[int(torch.randint(len(trained), (), generator=random))] |= not bool(kept.any())
        first, last, whole = torch.rand(3, generator=random).tolist()
        first, last = (0.0, 1.0) if whole >= self.config.partial else sorted((first, last))
        stretch = torch.zeros(length, dtype=torch.bool)
        stretch[int(first * length) : max(int(last * length), int(first * length) + 1)] = True
        return asked(stretch, [name for name, keep in zip(trained, kept.tolist(), strict=True) if keep])

    def loss(self, player: Player, module: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch.losses = self._losses(module, batch, batch.given)
        return batch.losses.mean(), {}

    def _losses(self, adaptor: nn.Module, batch: Any, given: Tensor) -> Tensor:
        """EDM's loss of each sample ``[B]`` where ``given`` of its signals is told."""
        with torch.no_grad():
            tags = batch.tags if self.conditioner.tags is not None else None
            conditioning = self.conditioner.join(batch.text, tags)
        edm = EDM(AdaptedDiT(self.teacher.dit, adaptor, batch.signals, given), self.teacher.config.sigma_data)
        noise = initial_noise(batch.clean.shape, seed=batch.seeds, device=batch.clean.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
            return edm_loss(edm, batch.clean, conditioning, sigma=batch.sigma, noise=noise)

    def describe(self, batch: Any) -> str:
        losses = [float("nan")] * len(batch.names) if batch.losses is None else batch.losses.tolist()
        rows = zip(batch.sigma.tolist(), losses, batch.names, strict=True)
        return "samples " + ", ".join(f"(sigma {sigma:.6g}, loss {loss:.6g}, {name})" for sigma, loss, name in rows)

    def validate(self, rank: int, world: int) -> dict[str, tuple[Tensor, Tensor]]:
        """The mean loss over held-out crops at noise levels spread evenly over the training distribution: told every
        control (``loss``), each alone, and none, which is the teacher's own."""
        config = self.config
        count, size = config.validation_crops, max(1, config.crops[0].batch // world)
        sigma = self.sigmas.p_mean + self.sigmas.p_std * torch.special.ndtri((torch.arange(count) + 0.5) / count)
        sigma = sigma.exp().clamp(self.sigmas.sigma_min, self.sigmas.sigma_max)
        told = {"loss": config.controls, **{name: (name,) for name in config.controls}, "teacher": ()}
        sums = {name: [torch.zeros(()), torch.zeros(())] for name in told}
        for samples, counts in shares(count, rank, world, size):
            examples: Any = self.music.validation(samples)
            everywhere = torch.ones(examples.clean.shape[1], dtype=torch.bool)
            seeds = [derived_seed(0, "validation", sample) for sample in samples]
            for name, controls in told.items():
                given = asked(everywhere, controls).expand(len(samples), -1, -1)
                batch = _batch(examples, given, sigma[samples], seeds).to(self.device)
                losses = self._losses(self.adaptor, batch, batch.given).cpu()
                sums[name][0] += (losses * counts).sum()
                sums[name][1] += counts.sum()
        return {name: (total, counted) for name, (total, counted) in sums.items()}

    def export(self, folder: Path, weights: Mapping[str, Mapping[str, Tensor]]) -> Path:
        return save_adaptor(folder / FILE, self.adaptor.config, weights["adaptor"], teacher=self.config.teacher)

    def to(self, device: torch.device) -> None:
        self.device = device
        self.teacher.dit.to(device)
        self.conditioner.to(device)


def asked(where: Tensor, controls: Sequence[str]) -> Tensor:
    """``[N]``, bool, to ``[N, 2]``: these controls there, the others nowhere."""
    return where[:, None] & torch.tensor([name in controls for name in CONTROLS])


def _batch(examples: SignalExamples, given: Tensor, sigma: Tensor, seeds: Sequence[int]) -> AdaptorBatch:
    # A melody asks for nothing where no pitch is clear, here as in the control.
    given = given & torch.cat((torch.ones_like(given[..., :1]), examples.signals[..., 1:].any(-1, keepdim=True)), -1)
    return AdaptorBatch(**vars(examples), given=given, sigma=sigma, seeds=signed(seeds))


@dataclass(frozen=True)
class TrainAdaptorOptions(DistillOptions):
    """Train an adaptor: a small network that makes a frozen model follow a loudness curve, a melody, or both."""


def run(options: TrainAdaptorOptions) -> int:
    """See :func:`presto_models.training.cli.train`."""
    return train(options.chosen(), "adaptor", AdaptorTrainConfig, AdaptorTask)
