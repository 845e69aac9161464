"""What every way of distilling shares: a teacher, its music, batches whose budgets fall, samples of the student."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from presto_kernels import LayerSchedule, renoise
from presto_models.autoencoders import Autoencoder, load_autoencoder
from presto_models.checkpoint import find_folder
from presto_models.components import AUTOENCODER_FILE, find_component
from presto_models.conditioning import Conditioning
from presto_models.diffusion import EDM, ScheduledDenoiser, initial_noise
from presto_models.diffusion.sampling import Sampling
from presto_models.diffusion_config import DiffusionConfig, Parameterization
from presto_models.distill.teacher import Teacher
from presto_models.metrics.frechet import frechet_distance, gaussian
from presto_models.training.audio import signed
from presto_models.training.config import TrainConfig
from presto_models.training.examples import CropConfig, DropConfig, Examples, MusicCrops
from presto_models.training.images import latent_image, spectrogram_image
from presto_models.training.seeding import derived_seed
from presto_models.training.sharding import shard_parts
from presto_models.training.task import Samples, Task

SHARDED = ("self_attention", "cross_attention", "mlp")


@dataclass(frozen=True)
class DistillConfig:
    """What every method's config has.

    Args:
        teacher: a shipped checkpoint's name, a folder or a hub id.
        data: folder of latents encoded with the teacher's autoencoder (``data encode``).
        crops: the kinds of batches; batch counts all processes and micro-batches together.
        drops: how often a sample's conditions are dropped.
        p_mean, p_std: of ln(sigma), for a sigma_data of 0.5: the teacher's own training distribution.
        validation_crops: how many held-out crops are looked at, of the first kind's length.
        prompts: what is sampled every so often; none: captions of validation clips.
        sample_latents: how long those samples are.
        max_seconds: the longest piece of the student; None: the teacher's.
    """

    teacher: str = "presto-tiny"
    data: str = "data/latents"
    crops: tuple[CropConfig, ...] = (CropConfig(),)
    drops: DropConfig = field(default_factory=DropConfig)
    p_mean: float = -1.2
    p_std: float = 1.2
    validation_crops: int = 64
    prompts: tuple[str, ...] = ()
    sample_latents: int = 172
    max_seconds: float | None = None
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class DistillBatch(Examples):
    """Examples in the order of falling ``budgets``, with draws of their own.

    ``seeds`` ``[B]``: of each sample's noise; one seed serves several noises, told apart by
    :func:`presto_kernels.renoise`'s offset.  ``sigmas``: purpose to noise levels ``[B]``.  ``budgets``: how many blocks
    run for each sample, None: all.  ``seen``: what the last loss was, for an error's text.
    """

    seeds: Tensor
    sigmas: dict[str, Tensor]
    budgets: list[int] | None = None
    seen: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Self:
        """The same on ``device``."""
        return replace(super().to(device), sigmas={name: sigma.to(device) for name, sigma in self.sigmas.items()})

    def noised(self, latents: Tensor, sigma: Tensor, offset: int) -> Tensor:
        """latents + sigma eps, eps this batch's noise number ``offset``; gradients flow to the latents."""
        return renoise(latents, sigma, seed=self.seeds, offset=offset)


class DistillTask(Task):
    """The teacher, its music and its conditions; a method adds players and losses.

    Subclasses set ``self.players`` and ``self.student``, the EDM around what is exported.
    """

    student: EDM
    parameterization: Parameterization = "edm"
    teacher: Teacher
    music: MusicCrops
    autoencoder: Autoencoder | None

    def __init__(self, config: DistillConfig) -> None:
        self.config: Any = config
        self.seed = config.train.seed
        self.low, self.device = config.train.precision == "bf16", torch.device("cpu")
        self.load()
        self.conditioner = self.teacher.conditioner
        if self.conditioner.tags is not None:
            self.music.vocabulary = self.conditioner.tags.vocabulary
        self.real = EDM(self.teacher.dit, self.teacher.config.sigma_data)

    def load(self) -> None:
        """Set ``teacher``, ``music`` and ``autoencoder`` from the files that the config names, checked; a subclass may
        have them from elsewhere."""
        config = self.config
        self.teacher = Teacher.load(config.teacher)
        mean, std = self.teacher.normalisation()
        self.music = MusicCrops(
            config.data,
            crops=config.crops,
            drops=config.drops,
            seed=self.seed,
            encoder=self.teacher.conditioner.cache.encoder,
            sigma_data=self.teacher.config.sigma_data,
            validation_crops=config.validation_crops,
            prompts=config.prompts,
            mean=mean,
            std=std,
        )
        self._check()
        self.autoencoder = self._autoencoder()

    def condition(self, batch: Examples) -> Conditioning:
        """What the batch's samples are conditioned on; nothing of it is trained."""
        with torch.no_grad():
            return self.conditioner.join(batch.text, batch.tags if self.conditioner.tags is not None else None)

    def batch_of(
        self,
        kind: int,
        step: int,
        mine: Sequence[int],
        sigmas: Mapping[str, Tensor],
        budgets: Sequence[int] | None = None,
    ) -> DistillBatch:
        """These samples of the step's batch, sorted by falling budget; sigmas and budgets are those of ``mine``."""
        order = list(range(len(mine)))
        if budgets is not None:
            order.sort(key=lambda i: -budgets[i])
        return DistillBatch(
            **vars(self.music.draw(kind, step, [mine[i] for i in order])),
            seeds=signed([derived_seed(self.seed, "noise", step, mine[i]) for i in order]),
            sigmas={name: sigma[order] for name, sigma in sigmas.items()},
            budgets=None if budgets is None else [budgets[i] for i in order],
        )

    def describe(self, batch: Any) -> str:
        rows = []
        for i, name in enumerate(batch.names):
            sigmas = ", ".join(f"sigma of {what} {float(sigma[i]):.6g}" for what, sigma in batch.sigmas.items())
            seen = "".join(f", {what} {float(values[i]):.6g}" for what, values in batch.seen.items())
            rows.append(f"({name}: {sigmas}{seen})")
        return "samples " + ", ".join(rows)

    def low_precision(self) -> torch.autocast:
        """bf16 for what runs inside: the networks and nothing around them."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.low)

    @abstractmethod
    def sampling(self) -> Sampling:
        """How the student is sampled."""

    def schedule(self) -> LayerSchedule | None:
        """Which blocks of the student run at which noise level; None: all."""
        return None

    def described(self) -> DiffusionConfig:
        """The config of the student's checkpoint."""
        config = self.teacher.config
        return replace(
            config,
            dit=self.student.dit.config,  # type: ignore[arg-type]
            parameterization=self.parameterization,
            sampling=self.sampling(),
            schedule=self.schedule(),
            max_seconds=self.config.max_seconds or config.max_seconds,
            base=self.teacher.base,
        )

    def export(self, folder: Path, weights: Mapping[str, Mapping[str, Tensor]]) -> Path:
        prefix = "student.dit."
        of_student = {
            name.removeprefix(prefix): tensor
            for player in weights.values()
            for name, tensor in player.items()
            if name.startswith(prefix)
        }
        return self.teacher.save_student(folder, of_student, self.described())

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], latents: int, seeds: Sequence[int]) -> Tensor:
        """The student's latents ``[B, latents, C]`` for prompts among the captions, sampled as from a checkpoint."""
        described = self.described()
        conditioning = self.conditioner.join(self.music.captions.batch(prompts).to(self.device))
        sampling = described.sampling
        with self.low_precision():
            denoise = ScheduledDenoiser(
                self.student,
                conditioning,
                sigmas=sampling.levels,
                sigma_to=sampling.targets,
                schedule=described.schedule,
                guidance=sampling.guidance,
                length=latents,
            )
            seed = signed(seeds).to(self.device)
            shape = (len(prompts), latents, self.teacher.config.dit.in_channels)
            x = sampling.sigmas[0] * initial_noise(shape, seed=seed, device=self.device)
            for index in range(sampling.steps):
                x = sampling.step(denoise, x, index, seed=seed, boundary_sigma=self.student.boundary_sigma)
        return x

    def sample(self) -> Samples:
        prompts = self.music.prompts
        seeds = [derived_seed(self.seed, "sample", index) for index in range(len(prompts))]
        latents = self.generate(prompts, self.config.sample_latents, seeds)
        images = {f"latents/{index}": latent_image(each) for index, each in enumerate(latents.cpu())}
        if self.autoencoder is None:
            return Samples(images=images)
        mean, std = (value.to(self.device) for value in self.teacher.normalisation())
        audio = self.autoencoder.decode(latents / self.teacher.config.sigma_data * std + mean).cpu()
        images |= {f"spectrogram/{index}": spectrogram_image(each) for index, each in enumerate(audio)}
        return Samples(self.autoencoder.sample_rate, {f"sample-{i}": each for i, each in enumerate(audio)}, images)

    def latent_distance(self) -> float:
        """Fréchet distance of the student's latents from held-out ones, over pairs (z_t, z_{t+1} - z_t).

        Held-out crops' captions are its prompts.  Cheap, and it falls with what one hears: mean level, spectrum,
        how fast things move.  Not FAD: no ear is asked.
        """
        config, found = self.config, []
        size = config.crops[0].batch
        for first in range(0, config.validation_crops, size):
            samples = range(first, min(first + size, config.validation_crops))
            captions = [self.music.held_out[i]["caption"] for i in samples]
            seeds = [derived_seed(0, "validation", i) for i in samples]
            found.append(self.generate(captions, config.crops[0].latents, seeds).cpu())
        real = self.music.validation(range(config.validation_crops)).clean
        return float(frechet_distance(*_statistics(torch.cat(found)), *_statistics(real)))

    def shard(self, module: nn.Module, mesh: Any) -> nn.Module:
        for name, part in list(module.named_modules()):
            last = name.rsplit(".", 1)[-1]
            if last == "dit":
                shard_parts(part, SHARDED, mesh, torch.bfloat16 if self.low else None)
            elif last == "discriminator":
                shard_parts(part, (), mesh, None)  # in fp32, whatever the networks are in
        return module

    def to(self, device: torch.device) -> None:
        self.device = device
        self.real.to(device)
        self.conditioner.to(device)
        if self.autoencoder is not None:
            self.autoencoder.to(device)

    def _autoencoder(self) -> Autoencoder | None:
        """The teacher's, to hear samples with; a teacher without one is looked at."""
        path = find_component(find_folder(self.config.teacher), AUTOENCODER_FILE)
        return None if path is None else load_autoencoder(path).requires_grad_(False)

    def _check(self) -> None:
        """Whether the teacher and the data fit each other and can be distilled; before anything is computed."""
        config, teacher = self.config, self.teacher.config
        self.teacher.check_latents(config.data, self.music.train.mean)
        if (
            teacher.dit.takes_guidance
            or teacher.guidance_baked is not None
            or teacher.parameterization != "edm"
            or teacher.sampling.sampler == "pingpong"
            or teacher.schedule is not None
        ):
            raise ValueError(f"teacher {config.teacher!r} is a distilled student itself; give the model it came from")


def _statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of (z_t, z_{t+1} - z_t) over ``[B, N, C]``."""
    pairs = torch.cat((latents[:, :-1], latents.diff(dim=1)), dim=2).flatten(0, 1).double()
    return gaussian(pairs, torch.ones(len(pairs), dtype=torch.float64))
