"""Crops of audio files for the tasks that work on waveforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from presto_models.data.folder import AudioFolder, Crops
from presto_models.training.seeding import derived_seed, generator

ENDLESS = 2**62  # crops are numbered by step and sample


@dataclass(frozen=True)
class AudioConfig:
    """What is cut out of a folder of audio.

    Args:
        folder: audio files with a train and a validation split, as ``data render`` writes.
        seconds: of a crop.  batch: crops in a step, all processes and micro-batches together.
        gain_db: each crop's level is changed by this, drawn evenly from between the two.
        validation_crops, validation_seconds: what is validated, the same for every run.
    """

    folder: str
    seconds: float = 65536 / 44100
    batch: int = 8
    gain_db: tuple[float, float] = (-6.0, 3.0)
    validation_crops: int = 16
    validation_seconds: float = 4.0


@dataclass
class AudioBatch:
    """Audio ``[B, channels, T]``, a seed of each sample, where it is from, and what a model made of it."""

    audio: Tensor
    seeds: Tensor
    names: list[str]
    output: Tensor | None = None

    def to(self, device: torch.device) -> AudioBatch:
        """The same on ``device``."""
        return replace(self, audio=self.audio.to(device), seeds=self.seeds.to(device))


class AudioData:
    """Training batches by step and validation crops by number."""

    def __init__(self, config: AudioConfig, *, sample_rate: int, channels: int, seed: int) -> None:
        self.config, self.seed = config, seed
        self._train = self._crops("train", config.seconds, seed, ENDLESS, sample_rate, channels)
        self._validation = self._crops(
            "validation", config.validation_seconds, 0, config.validation_crops, sample_rate, channels
        )

    def batch(self, step: int, part: int, parts: int) -> AudioBatch:
        """Part ``part`` of ``parts`` of a step's batch."""
        size = self.config.batch
        if size % parts:
            raise ValueError(f"a batch of {size} crops cannot be split over {parts} processes and micro-batches")
        audio, seeds, names = [], [], []
        for sample in range(part * size // parts, (part + 1) * size // parts):
            crop = self._train[step * size + sample]
            low, high = self.config.gain_db
            share = torch.rand((), generator=generator(self.seed, "gain", step, sample))
            audio.append(crop["audio"] * 10 ** ((low + (high - low) * share) / 20))
            seeds.append(derived_seed(self.seed, "noise", step, sample))
            names.append(Path(self._train.folder.items[crop["item"]].path).name)
        return AudioBatch(torch.stack(audio), signed(seeds), names)

    def validation(self, samples: Sequence[int]) -> AudioBatch:
        """Validation crops by their numbers."""
        audio = torch.stack([self._validation[sample]["audio"] for sample in samples])
        seeds = signed([derived_seed(0, "validation", sample) for sample in samples])
        return AudioBatch(audio, seeds, [f"validation {sample}" for sample in samples])

    def _crops(self, split: str, seconds: float, seed: int, length: int, sample_rate: int, channels: int) -> Crops:
        folder = AudioFolder(self.config.folder, split=split)
        return Crops(folder, seconds=seconds, channels=channels, seed=seed, sample_rate=sample_rate, length=length)


def signed(seeds: Sequence[int]) -> Tensor:
    """64-bit seeds as int64, which is what a seed on a device is."""
    return torch.tensor([seed - 2**63 for seed in seeds], dtype=torch.int64)
