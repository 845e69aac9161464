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
class PipelinePlayers:
    """:class:`Players` on checkpoints, each loaded once and kept, all with one text encoder where they have the same.

    Attributes:
        checkpoints: a folder in which a row's checkpoint is looked for first; None: there is none.
        seconds: length of what is played.  device, dtype: as for :meth:`PrestoPipeline.from_pretrained`.
    """

    seconds: float
    device: torch.device
    dtype: torch.dtype | None = None
    checkpoints: str | None = None

    def __post_init__(self) -> None:
        self._hashes: dict[Path, dict[str, str]] = {}
        self._pipelines: dict[Path, PrestoPipeline] = {}

    def weights(self, row: Row) -> dict[str, str]:
        folder = self._folder(row)
        if folder not in self._hashes:
            self._hashes[folder] = weights_sha256(folder)
        if DIFFUSION_FILE not in self._hashes[folder]:
            raise FileNotFoundError(f"checkpoint {folder.name!r} has no {DIFFUSION_FILE}")
        return self._hashes[folder]

    def load(self, row: Row) -> PipelinePlayer:
        folder = self._folder(row)
        if folder not in self._pipelines:
            pipeline = PrestoPipeline.from_pretrained(folder, device=self.device, dtype=self.dtype)
            for other in self._pipelines.values():
                if other.conditioner and pipeline.conditioner and other.config.text == pipeline.config.text:
                    pipeline.conditioner.cache = other.conditioner.cache  # a text encoder's memory for each adds up
            self._pipelines[folder] = pipeline
        return PipelinePlayer(row, self._pipelines[folder], self.seconds)

    def _folder(self, row: Row) -> Path:
        if self.checkpoints is not None and (found := Path(self.checkpoints) / row.checkpoint).is_dir():
            return found
        try:
            return find_folder(row.checkpoint)
        except (FileNotFoundError, CheckpointError, ImportError) as error:
            raise FileNotFoundError(f"no checkpoint {Path(row.checkpoint).name!r}") from error
