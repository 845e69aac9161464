"""What a person sees of a generation while it runs, and its stages timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from presto_models.engine import OnStage, Plan


@dataclass(frozen=True)
class Timings:
    """Seconds of each stage of one generation, the device waited for after each.

    ``prompt``: the text encoder, almost nothing for a prompt it has seen.  ``prepare``: modulation, text keys and
    values, the starting noise.  ``steps``: each, on a CPU those of one sample after those of another.  ``stereo``: 0
    where it was not asked for.
    """

    prompt: float
    prepare: float
    steps: tuple[float, ...]
    decode: float
    stereo: float
    total: float


class Stopwatch:
    """The time since the last stage, at the end of each."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stages = device, list[tuple[str, float]]()
        self.last = self._now()

    def __call__(self, stage: str) -> None:
        now = self._now()
        self.stages.append((stage, now - self.last))
        self.last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timings(self) -> Timings:
        def total(*names: str) -> float:
            return sum(seconds for name, seconds in self.stages if not names or name in names)

        return Timings(
            prompt=total("prompt"),
            prepare=total("prepare", "noise"),
            steps=tuple(seconds for name, seconds in self.stages if name == "step"),
            decode=total("decode"),
            stereo=total("stereo"),
            total=total(),
        )


@contextmanager
def progress_bar(plan: Plan, rounds: int, wanted: bool) -> Iterator[OnStage | None]:
    """A bar over steps, decode and stereo of ``rounds`` walks, or None where none is wanted or nobody would see it."""
    if not wanted:
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError as error:
        raise ImportError("progress=True needs rich: pip install 'presto-kernels[models]'") from error
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("generating", total=rounds * (plan.sampling.steps + 1 + plan.stereo))

        def on_stage(stage: str) -> None:
            bar.update(task, advance=stage in ("step", "decode", "stereo"))

        yield on_stage


def all_of(*each: OnStage | None) -> OnStage:
    """Tells each that is there."""

    def on_stage(stage: str) -> None:
        for one in each:
            if one is not None:
                one(stage)

    return on_stage
