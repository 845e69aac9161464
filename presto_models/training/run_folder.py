"""A run's folder: its config, its checkpoints, what it exports.

run/
  config.json   {"task": ..., "config": {...}}
  state-00001000.safetensors, state-00002000.safetensors    the last two: weights, EMA, optimisers, step
  diffusion.safetensors     what the task exports: averaged weights with the config that rebuilds the module
  metrics.jsonl  curves.png  events.out.tfevents.*  samples/
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from presto_models.checkpoint import load_weights, save_weights
from presto_models.training.config import differences

KEPT = 2
KIND = "training-state"


class RunFolderError(ValueError):
    """The folder holds another run."""


class RunFolder:
    """Opens or makes the folder of a run.

    Raises:
        RunFolderError: it holds a run of another config or task (the message says what differs), or one of this config
            that has checkpoints while ``resume`` is False.
    """

    def __init__(self, path: str | os.PathLike[str], *, task: str, config: Mapping[str, Any], resume: bool) -> None:
        self.path = Path(path)
        self.resume = resume
        self._described = {"task": task, "config": dict(config)}
        file = self.path / "config.json"
        if file.is_file():
            there = json.loads(file.read_text())
            changed = differences({"task": there["task"]}, {"task": task}) + differences(there["config"], dict(config))
            if changed:
                raise RunFolderError(
                    f"{self.path} holds another run: {'; '.join(changed)}. Choose another folder, or give that config"
                )
            if not resume and self.latest() is not None:
                raise RunFolderError(
                    f"{self.path} holds this run already, at step {self.latest_step()}: resume it, or choose another "
                    "folder"
                )

    def create(self) -> None:
        """Make the folder and write the config; only one process may."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "config.json", json.dumps(self._described, indent=2) + "\n")

    def latest(self) -> Path | None:
        """The newest checkpoint."""
        return max(self.path.glob("state-*.safetensors"), default=None)

    def latest_step(self) -> int:
        """How many steps the newest checkpoint has behind it; 0 without one."""
        newest = self.latest()
        return 0 if newest is None else int(newest.stem.split("-")[1])

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> Path:
        """Write the state after ``step`` steps, then drop all but the last two."""
        path = save_weights(self.path / f"state-{step:08d}.safetensors", tensors, kind=KIND, config={"step": step})
        for old in sorted(self.path.glob("state-*.safetensors"))[:-KEPT]:
            old.unlink()
        return path

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """(step, tensors) of the newest checkpoint, or None."""
        newest = self.latest()
        if newest is None:
            return None
        tensors, config = load_weights(newest, kind=KIND)
        return int(config["step"]), tensors


def write_text(path: Path, text: str) -> None:
    """Beside first, then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    os.replace(beside, path)
