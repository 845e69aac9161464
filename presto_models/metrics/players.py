"""A row's checkpoint, ready to play: what a table of methods asks of a pipeline."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from presto_models.checkpoint import CheckpointError, find_folder
from presto_models.components import DIFFUSION_FILE
from presto_models.metrics.generated import weights_sha256
from presto_models.metrics.method_rows import NetworkUse, Row, network_use
from presto_models.metrics.splits import EncodesAndDecodes
from presto_models.pipeline import PrestoPipeline


class Player(Protocol):
    """Makes music the way of one row."""

    @property
    def autoencoder(self) -> EncodesAndDecodes: ...

    def generate(self, prompts: list[str], seed: int) -> tuple[Tensor, int]:
        """Waveforms ``[prompts, channels, samples]`` and their sample rate."""

    def time(self, prompt: str, seed: int) -> dict[str, float]:
        """Milliseconds of one piece: ``pipeline_ms`` from prompt to waveform, ``steps_ms`` of that in the sampler."""

    def use(self) -> NetworkUse:
        """What one piece asks of the network."""

    def settings(self) -> dict[str, Any]:
        """The sampling and the layer schedule as they come out, plain JSON."""


class Players(Protocol):
    """Finds and loads the checkpoints of rows."""

    device: torch.device

    def weights(self, row: Row) -> dict[str, str]:
        """What tells its checkpoint from another; FileNotFoundError where there is none."""

    def load(self, row: Row) -> Player:
        """ValueError, OSError where the checkpoint cannot be used, or not with this row's settings."""


class PipelinePlayer:
    """A :class:`Player` on a pipeline, whose modules it shares and whose config it changes for itself."""

    def __init__(self, row: Row, pipeline: PrestoPipeline, seconds: float) -> None:
        config = pipeline.config
        schedule = config.schedule if row.schedule == "own" else None
        config = replace(config, sampling=row.sampling(config.sampling), schedule=schedule)
        self.pipeline = PrestoPipeline(config, pipeline.dit, pipeline.autoencoder, conditioner=pipeline.conditioner)
        self.seconds, self.config, self.autoencoder = seconds, config, pipeline.autoencoder

    def generate(self, prompts: list[str], seed: int) -> tuple[Tensor, int]:
        made = self.pipeline(prompts, seconds=self.seconds, seed=seed)
        return made.waveform.cpu(), made.sample_rate

    def time(self, prompt: str, seed: int) -> dict[str, float]:
        graph = self.pipeline.engine.capture  # its stages cannot be told apart, so they are timed once more without it
        started = time.perf_counter()
        made = self.pipeline(prompt, seconds=self.seconds, seed=seed, timings=not graph)
        made.waveform.cpu()  # waits for the device
        took = time.perf_counter() - started
        stages = made.timings or self.pipeline(prompt, seconds=self.seconds, seed=seed, timings=True).timings
        assert stages is not None  # asked for
        return {"pipeline_ms": 1e3 * took, "steps_ms": 1e3 * sum(stages.steps)}

    def use(self) -> NetworkUse:
        dit = self.config.dit
        return network_use(
            self.config.sampling, self.config.schedule, dit.num_blocks, takes_guidance=dit.takes_guidance
        )

    def settings(self) -> dict[str, Any]:
        schedule = self.config.schedule
        return {
            "sampling": self.config.sampling.to_dict(),
            "schedule": None if schedule is None else schedule.to_dict(),
        }


@dataclass
class Checkpoints:
    """Checkpoints by name, each loaded once and kept, all with one text encoder where they have the same.

    Attributes:
        device, dtype: as for :meth:`PrestoPipeline.from_pretrained`.
        folder: in which a checkpoint is looked for first; None: there is none.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        self._hashes: dict[Path, dict[str, str]] = {}
        self._pipelines: dict[tuple[Path, torch.dtype | None], PrestoPipeline] = {}

    def weights(self, name: str) -> dict[str, str]:
        """What tells it from another; FileNotFoundError where there is none."""
        folder = self._folder(name)
        if folder not in self._hashes:
            self._hashes[folder] = weights_sha256(folder)
        if DIFFUSION_FILE not in self._hashes[folder]:
            raise FileNotFoundError(f"checkpoint {folder.name!r} has no {DIFFUSION_FILE}")
        return self._hashes[folder]

    def load(self, name: str, dtype: torch.dtype | None = None) -> PrestoPipeline:
        """With the DiT in ``dtype``, by default in that of all."""
        at = self._folder(name), dtype or self.dtype
        if at not in self._pipelines:
            pipeline = PrestoPipeline.from_pretrained(at[0], device=self.device, dtype=at[1])
            for other in self._pipelines.values():
                if other.conditioner and pipeline.conditioner and other.config.text == pipeline.config.text:
                    pipeline.conditioner.cache = other.conditioner.cache  # a text encoder's memory for each adds up
            self._pipelines[at] = pipeline
        return self._pipelines[at]

    def find(self, name: str) -> Path:
        """A file or folder of the folder, or wherever else it is; FileNotFoundError where there is none."""
        for place in ([] if self.folder is None else [Path(self.folder) / name]) + [Path(name)]:
            if place.exists():
                return place
        raise FileNotFoundError(f"no {Path(name).name!r}")

    def _folder(self, name: str) -> Path:
        if self.folder is not None and (found := Path(self.folder) / name).is_dir():
            return found
        try:
            return find_folder(name)
        except (FileNotFoundError, CheckpointError, ImportError) as error:
            raise FileNotFoundError(f"no checkpoint {Path(name).name!r}") from error


@dataclass
class PipelinePlayers:
    """:class:`Players` on checkpoints.

    Attributes:
        seconds: length of what is played.  device, dtype, checkpoints: as for :class:`Checkpoints`, the last a folder.
    """

    seconds: float
    device: torch.device
    dtype: torch.dtype | None = None
    checkpoints: str | None = None

    def __post_init__(self) -> None:
        self._found = Checkpoints(self.device, self.dtype, self.checkpoints)

    def weights(self, row: Row) -> dict[str, str]:
        return self._found.weights(row.checkpoint)

    def load(self, row: Row) -> PipelinePlayer:
        return PipelinePlayer(row, self._found.load(row.checkpoint), self.seconds)
