"""`train stereo`: the side signal from the mid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from presto_models.checkpoint import load_into
from presto_models.stereo import MonoToStereo, StereoConfig, save_stereo
from presto_models.stereo_objective import stereo_loss
from presto_models.training.audio import AudioBatch, AudioConfig, AudioData
from presto_models.training.cli import TrainOptions, train
from presto_models.training.config import TrainConfig
from presto_models.training.images import spectrogram_image
from presto_models.training.seeding import seeded_weights
from presto_models.training.task import Player, Samples, Task, shares

HEARD = 4


@dataclass(frozen=True)
class StereoTrainConfig:
    """What ``train stereo`` computes: crops of stereo audio, the module's sizes, the run.  Precision is fp32."""

    data: AudioConfig
    model: StereoConfig = field(default_factory=StereoConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(precision="fp32"))

    def __post_init__(self) -> None:
        if self.train.precision != "fp32":
            raise ValueError(
                f"train.precision must be fp32: powers of spectra do not fit bf16; got {self.train.precision}"
            )


class StereoLoss(nn.Module):
    """:func:`stereo_loss` as a module: audio ``[B, 2, T]`` to (loss, parts)."""

    def __init__(self, module: MonoToStereo) -> None:
        super().__init__()
        self.module = module

    def forward(self, audio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return stereo_loss(self.module, audio)


class StereoTask(Task):
    """How far the module's stereo is from the truth, given the truth's down-mix."""

    def __init__(self, config: StereoTrainConfig) -> None:
        self.config, self.device = config, torch.device("cpu")
        self.data = AudioData(config.data, sample_rate=config.model.sample_rate, channels=2, seed=config.train.seed)
        with seeded_weights(config.train.seed):
            self.objective = StereoLoss(MonoToStereo(config.model))
        self.players = (Player("stereo", self.objective),)

    def batch(self, step: int, part: int, parts: int) -> AudioBatch:
        return self.data.batch(step, part, parts)

    def loss(self, player: Player, module: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        total, parts = module(batch.audio)
        return total, parts

    def describe(self, batch: Any) -> str:
        return f"files {', '.join(batch.names)}"

    def validate(self, rank: int, world: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Every part of the loss over validation crops."""
        sums: dict[str, Tensor] = {}
        count = torch.zeros(())
        for samples, counts in shares(self.config.data.validation_crops, rank, world, size=1):
            loss, parts = self.objective(self.data.validation(samples).audio.to(self.device))
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, torch.zeros(())) + float(value) * counts.sum()
            count += counts.sum()
        return {name: (total, count) for name, total in sums.items()}

    def sample(self) -> Samples:
        truth = self.data.validation(range(min(HEARD, self.config.data.validation_crops))).audio
        made = self.objective.module(truth.mean(1, keepdim=True).to(self.device)).cpu()
        audio, images = {}, {}
        for index, (original, wide) in enumerate(zip(truth, made, strict=True)):
            for name, wave in (("original", original), ("made", wide)):
                audio[f"{index}-{name}"] = wave
                images[f"side/{index}-{name}"] = spectrogram_image((wave[:1] - wave[1:]) / 2)
        return Samples(self.config.model.sample_rate, audio, images)

    def export(self, folder: Path, weights: Mapping[str, Mapping[str, Tensor]]) -> Path:
        module = MonoToStereo(self.config.model)
        averaged = {name.removeprefix("module."): tensor for name, tensor in weights["stereo"].items()}
        load_into(module, averaged, source="the averaged weights")
        return save_stereo(module.bfloat16(), folder / "stereo.safetensors")

    def to(self, device: torch.device) -> None:
        self.device = device


@dataclass(frozen=True)
class TrainStereoOptions(TrainOptions):
    """Train a mono-to-stereo module."""


def run(options: TrainStereoOptions) -> int:
    """See :func:`presto_models.training.cli.train`."""
    return train(options, "stereo", StereoTrainConfig, StereoTask)
