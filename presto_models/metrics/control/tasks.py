"""What is asked of the music: one control for each run, made from a held-out clip.

``TASKS``: name of a task to its class, whose fields are the numbers every row of it shares.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from presto_models.ditto import Control, Curve, Inpaint, Intensity, Loop, Melody, Optimized, Outpaint, Structure
from presto_models.ditto.features import Loudness
from presto_models.ditto.features.loudness import FLOOR
from presto_models.pipeline import PrestoPipeline


@dataclass(frozen=True)
class ControlTask(ABC):
    """A task.

    Args:
        threshold: an error that counts as reached.  Runs do not stop there unless their row says so.
        steps: of Adam, for methods that search; None: DITTO's default.

    ``unit``: of the error.  ``figure``: what else the table shows of it, one of the run's figures.
    """

    threshold: float | None = None
    steps: int | None = None

    unit: ClassVar[str]
    figure: ClassVar[str]

    @abstractmethod
    def control(self, clip: Tensor, sample_rate: int, run: int, threshold: float | None) -> Control:
        """What run number ``run`` is asked for; ``clip``: held-out music ``[T]``, as long as what is made."""

    def finished(self, pipeline: PrestoPipeline, control: Control, made: Optimized) -> tuple[Tensor, dict[str, float]]:
        """What a person would hear, ``[channels, T]``, as long as the music; and what can only be measured there."""
        return made.waveform[0], {}

    def asked(self) -> dict[str, Any]:
        """What decides the music, plain JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("threshold", "steps")}


@dataclass(frozen=True)
class PaintingTask(ControlTask):
    """A part of the music is to be that of the clip.

    Args:
        overlap: seconds that are compared at each edge.

    What is heard is the piece stitched together (presto_models.ditto.stitching), its last part as long as the music:
    the clip's own waveform where the music is to be the clip, and the new music elsewhere.
    """

    overlap: float = 2.0

    unit: ClassVar[str] = "mean square"
    figure: ClassVar[str] = "seam"

    def finished(self, pipeline: PrestoPipeline, control: Control, made: Optimized) -> tuple[Tensor, dict[str, float]]:
        """``seam``: see :func:`jump`.  ``fade correlation``: of the two waveforms in the worst fade, -1 to 1."""
        assert isinstance(control, (Outpaint, Inpaint, Loop))
        joined = control.join(pipeline, made.waveform[0])
        hop = pipeline.autoencoder.hop
        (outcome,) = made.outcomes.values()
        ends = {round(second * made.sample_rate / hop) for span in outcome.spans for second in span}
        figures = {"fade correlation": min(seam.correlation for seam in joined.seams)}
        inside = sorted(end for end in ends if 0 < end < made.x.shape[1])
        return joined.audio[:, -made.waveform.shape[2] :], {"seam": jump(made.x[0], inside), **figures}


def jump(x: Tensor, at: list[int]) -> float:
    """How much latents ``[N, C]`` change from at - 1 to at, beside how much they change elsewhere: a ratio of root
    mean squares, 1 where the music goes on there as anywhere, above it where it breaks."""
    change = x.diff(dim=0).square().mean(1)
    there = torch.zeros(len(change), dtype=torch.bool, device=x.device)
    there[[index - 1 for index in at]] = True
    return float((change[there].mean() / change[~there].mean()).sqrt())


@dataclass(frozen=True)
class OutpaintTask(PaintingTask):
    """The music begins with the clip's end."""

    def control(self, clip: Tensor, sample_rate: int, run: int, threshold: float | None) -> Control:
        return Outpaint(reference=clip, sample_rate=sample_rate, overlap=self.overlap, threshold=threshold)


@dataclass(frozen=True)
class InpaintTask(PaintingTask):
    """``gap`` seconds in the middle of the clip are new."""

    gap: float = 3.0

    def control(self, clip: Tensor, sample_rate: int, run: int, threshold: float | None) -> Control:
        middle = clip.shape[0] / sample_rate / 2
        gap = (middle - self.gap / 2, middle + self.gap / 2)
        return Inpaint(reference=clip, sample_rate=sample_rate, gap=gap, overlap=self.overlap, threshold=threshold)


@dataclass(frozen=True)
class LoopTask(PaintingTask):
    """The music begins as the clip ends and ends as it begins."""

    def control(self, clip: Tensor, sample_rate: int, run: int, threshold: float | None) -> Control:
        return Loop(reference=clip, sample_rate=sample_rate, overlap=self.overlap, threshold=threshold)


@dataclass(frozen=True)
class IntensityTask(ControlTask):
    """A loudness curve: in turn four that are drawn, and that of the clip.

    Args:
        level: dB re full scale, the mean of the drawn ones; that of the model's own music, so that the shape is what
            has to be followed and not the level.
        depth: dB from there to their highest and lowest.
    """

    level: float = -24.0
    depth: float = 6.0

    unit: ClassVar[str] = "dB²"
    figure: ClassVar[str] = "correlation"
    # (share of the length, share of the depth), linear between them
    shapes: ClassVar[dict[str, tuple[tuple[float, float], ...]]] = {
        "crescendo": ((0, -1), (1, 1)),
        "decrescendo": ((0, 1), (1, -1)),
        "swell": ((0, -1), (0.5, 1), (1, -1)),
        "steps": ((0, -1), (0.25, -1), (0.255, 1), (0.5, 1), (0.505, -1), (0.75, -1), (0.755, 1), (1, 1)),
    }

    def control(self, clip: Tensor, sample_rate: int, run: int, threshold: float | None) -> Control:
        kind = run % (len(self.shapes) + 1)
        if kind == len(self.shapes):
            heard = Loudness(clip.shape[0], sample_rate)(clip[None])[0]
            return Intensity(curve=heard.clamp(FLOOR, 0), threshold=threshold)  # smoothed, silence lies below it
        at, values = zip(*list(self.shapes.values())[kind], strict=True)
        seconds = clip.shape[0] / sample_rate
        curve = Curve(tuple(seconds * t for t in at), tuple(self.level + self.depth * value for value in values))
        return Intensity(curve=curve, threshold=threshold)


@dataclass(frozen=True)
class MelodyTask(ControlTask):
    """The clip's melody."""

    unit: ClassVar[str] = "nats"
    figure: ClassVar[str] = "accuracy"

    def control(self, clip: Tensor, sample_rate: int, run: int, threshold: float | None) -> Control:
        return Melody(reference=clip, sample_rate=sample_rate, threshold=threshold)


@dataclass(frozen=True)
class StructureTask(ControlTask):
    """``forms``, one after the other."""

    forms: tuple[str, ...] = ("ABA", "ABBA", "AABB", "ABAB")

    unit: ClassVar[str] = "mean square"
    figure: ClassVar[str] = "correlation"

    def control(self, clip: Tensor, sample_rate: int, run: int, threshold: float | None) -> Control:
        return Structure(form=self.forms[run % len(self.forms)], threshold=threshold)


TASKS: dict[str, type[ControlTask]] = {
    "outpaint": OutpaintTask,
    "inpaint": InpaintTask,
    "loop": LoopTask,
    "intensity": IntensityTask,
    "melody": MelodyTask,
    "structure": StructureTask,
}
PAINTING = ("outpaint", "inpaint", "loop")
