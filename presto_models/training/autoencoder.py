"""`train autoencoder`: audio to latents and back, with a discriminator where the config has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from presto_models.autoencoders import (
    SpectralAutoencoder,
    SpectralAutoencoderConfig,
    load_autoencoder,
    save_autoencoder,
)
from presto_models.autoencoders.discriminator import (
    DiscriminatorConfig,
    SpectralDiscriminator,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from presto_models.autoencoders.losses import AudioLoss, AudioLossConfig, FrameLoss, FrameLossConfig
from presto_models.checkpoint import load_into
from presto_models.diffusion import initial_noise
from presto_models.training.audio import AudioBatch, AudioConfig, AudioData
from presto_models.training.cli import TrainOptions, train
from presto_models.training.config import TrainConfig
from presto_models.training.images import spectrogram_image
from presto_models.training.seeding import seeded_weights
from presto_models.training.task import Player, Samples, Task, shares

HEARD = 4


@dataclass(frozen=True)
class AdversarialConfig:
    """The discriminator's part.

    Args:
        start: the step from which it trains and counts.
        weight, feature_weight: of :func:`adversarial_loss` and :func:`feature_loss` in the autoencoder's loss.
        learning_rate, betas: the discriminator's own.
        discriminator: its sizes.
    """

    start: int = 0
    weight: float = 1.0
    feature_weight: float = 2.0
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.8, 0.95)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


@dataclass(frozen=True)
class AutoencoderTrainConfig:
    """What ``train autoencoder`` computes.

    Args:
        data: the crops.
        model: the autoencoder's sizes.
        loss: of its frames.
        audio_loss: of the waveform made of them; None: none is made, and a step is several times faster.
        adversarial: None: no discriminator.  With one a waveform is made.
        start_from: a trained autoencoder to start from, of the same ``model``.
        freeze_encoder: only the decoder moves, so that latents stay what they are.
    """

    data: AudioConfig
    model: SpectralAutoencoderConfig = field(default_factory=SpectralAutoencoderConfig)
    loss: FrameLossConfig = field(default_factory=FrameLossConfig)
    audio_loss: AudioLossConfig | None = None
    adversarial: AdversarialConfig | None = None
    start_from: str | None = None
    freeze_encoder: bool = False
    train: TrainConfig = field(default_factory=TrainConfig)


class Reconstruction(nn.Module):
    """The autoencoder and its losses: audio to (loss, parts, output); networks in bf16 if ``low``, losses in fp32.

    The output's waveform is made where ``sounding``; else it is None.
    """

    def __init__(self, config: AutoencoderTrainConfig, model: SpectralAutoencoder) -> None:
        super().__init__()
        self.model, self.low = model, config.train.precision == "bf16"
        self.sounding = config.adversarial is not None or config.audio_loss is not None
        rate = config.model.sample_rate
        self.frame_loss = FrameLoss(config.loss, sample_rate=rate, bins=config.model.bins)
        self.audio_loss = None if config.audio_loss is None else AudioLoss(config.audio_loss, sample_rate=rate)

    def forward(self, audio: Tensor, seeds: Tensor | None) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """``audio [B, 1, T]``; ``seeds [B]`` of the posterior's noise, None: the posterior's mean is decoded."""
        target = self.model.analyse(audio)
        with torch.autocast(audio.device.type, torch.bfloat16, enabled=self.low):
            mean, log_variance = self.model.posterior(target)
            latents = mean
            if seeds is not None:
                noise = initial_noise(mean.shape, seed=seeds, device=mean.device)
                latents = mean + noise * (0.5 * log_variance).exp()
            frames = self.model.frames(latents)
        loss, parts = self.frame_loss(target, frames, mean, log_variance)
        if not self.sounding:
            return loss, parts, None
        output = self.model.synthesise(frames)[..., : audio.shape[-1]]
        if self.audio_loss is not None:
            more, heard = self.audio_loss(audio, output)
            loss, parts = loss + more, {**parts, **heard}
        return loss, parts, output


class Judgement(nn.Module):
    """The discriminator's own loss."""

    def __init__(self, discriminator: SpectralDiscriminator, *, low: bool) -> None:
        super().__init__()
        self.discriminator, self.low = discriminator, low

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        return discriminator_loss(self.judge(real), self.judge(fake))

    def judge(self, audio: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """The discriminator's scores and features, fp32."""
        with torch.autocast(audio.device.type, torch.bfloat16, enabled=self.low):
            judged = self.discriminator(audio)
        return [(score.float(), [feature.float() for feature in features]) for score, features in judged]


class AutoencoderTask(Task):
    """Spectral, mel, waveform and KL losses, and from some step on the discriminator's."""

    def __init__(self, config: AutoencoderTrainConfig) -> None:
        self.config, self.device = config, torch.device("cpu")
        low, seed = config.train.precision == "bf16", config.train.seed
        rate = config.model.sample_rate
        self.data = AudioData(config.data, sample_rate=rate, channels=1, seed=seed)
        with seeded_weights(seed):
            model = SpectralAutoencoder(config.model)
            judge = None if config.adversarial is None else SpectralDiscriminator(config.adversarial.discriminator)
        if config.start_from is not None:
            load_into(model, load_autoencoder(config.start_from).state_dict(), source=config.start_from)
        if config.freeze_encoder:
            model.encoder.requires_grad_(False)
            model.to_posterior.requires_grad_(False)
        self.model = model
        self.reconstruction = Reconstruction(config, model)
        self.players: tuple[Player, ...] = (Player("autoencoder", self.reconstruction),)
        self.judgement = None if judge is None else Judgement(judge, low=low)
        if self.judgement is not None and config.adversarial is not None:
            hostile = config.adversarial
            self.players += (
                Player("discriminator", self.judgement, hostile.learning_rate, hostile.start, hostile.betas),
            )

    def batch(self, step: int, part: int, parts: int) -> AudioBatch:
        return self.data.batch(step, part, parts)

    def loss(self, player: Player, module: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if player.name == "discriminator":
            return module(batch.audio, batch.output), {}
        total, parts, output = module(batch.audio, batch.seeds)
        batch.output = None if output is None else output.detach()
        hostile = self.config.adversarial
        if self.judgement is not None and hostile is not None and step >= hostile.start:
            # Frozen while the autoencoder moves: gradients reach its input alone.
            self.judgement.requires_grad_(False)
            with torch.no_grad():
                real = self.judgement.judge(batch.audio)
            fake = self.judgement.judge(output)
            self.judgement.requires_grad_(True)
            parts |= {"adversarial": adversarial_loss(fake), "features": feature_loss(real, fake)}
            total = total + hostile.weight * parts["adversarial"] + hostile.feature_weight * parts["features"]
        return total, {name: part.detach() for name, part in parts.items()}

    def describe(self, batch: Any) -> str:
        return f"files {', '.join(batch.names)}"

    def validate(self, rank: int, world: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Every part of the loss over validation crops coded by the posterior's mean, and the audio's ``convergence``:
        |magnitudes of the decoded audio - of the crop| / |of the crop|.
        """
        sums: dict[str, Tensor] = {}
        count = torch.zeros(())
        for samples, counts in shares(self.config.data.validation_crops, rank, world, size=1):
            audio = self.data.validation(samples).audio.to(self.device)
            loss, parts, _ = self.reconstruction(audio, None)
            values = {"loss": loss, **parts, "convergence": self._convergence(audio)}
            for name, value in values.items():
                sums[name] = sums.get(name, torch.zeros(())) + float(value) * counts.sum()
            count += counts.sum()
        return {name: (total, count) for name, total in sums.items()}

    def _convergence(self, audio: Tensor) -> Tensor:
        target = self.model.analyse(audio).magnitude
        found = self.model.analyse(self._decoded(audio)).magnitude
        return (found - target).norm() / target.norm().clamp_min(1e-6)

    def _decoded(self, audio: Tensor) -> Tensor:
        return self.model.decode(self.model.encode(audio))[..., : audio.shape[-1]]

    def sample(self) -> Samples:
        audio = self.data.validation(range(min(HEARD, self.config.data.validation_crops))).audio
        output = self._decoded(audio.to(self.device)).cpu()
        pairs = {
            f"{index}-{name}": wave
            for name, waves in (("original", audio), ("decoded", output))
            for index, wave in enumerate(waves)
        }
        images = {f"spectrogram/{name}": spectrogram_image(wave) for name, wave in pairs.items()}
        return Samples(self.config.model.sample_rate, pairs, images)

    def export(self, folder: Path, weights: Mapping[str, Mapping[str, Tensor]]) -> Path:
        model = SpectralAutoencoder(self.config.model)
        averaged = weights["autoencoder"]
        load_into(
            model,
            {name.removeprefix("model."): tensor for name, tensor in averaged.items() if name.startswith("model.")},
            source="the averaged weights",
        )
        return save_autoencoder(folder / "autoencoder.safetensors", model, dtype=torch.bfloat16)

    def to(self, device: torch.device) -> None:
        self.device = device


@dataclass(frozen=True)
class TrainAutoencoderOptions(TrainOptions):
    """Train an autoencoder."""


def run(options: TrainAutoencoderOptions) -> int:
    """See :func:`presto_models.training.cli.train`."""
    return train(options, "autoencoder", AutoencoderTrainConfig, AutoencoderTask)
