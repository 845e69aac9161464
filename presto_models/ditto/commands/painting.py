"""``control outpaint``, ``inpaint``, ``loop``, ``invert``: music made to fit a recording, or to be it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from presto_models.ditto.commands.inputs import read_recording
from presto_models.ditto.commands.options import ControlOptions
from presto_models.ditto.commands.task import Piece, Task
from presto_models.ditto.control import Span
from presto_models.ditto.inversion import Inversion
from presto_models.ditto.painting import Inpaint, Loop, Outpaint
from presto_models.ditto.plots import Picture
from presto_models.ditto.scene import Scene
from presto_models.ditto.stitching import Joined
from presto_models.pipeline import PrestoPipeline


@dataclass(frozen=True, kw_only=True)
class RecordingOptions(ControlOptions):
    """Music and a recording."""

    excerpt: tuple[float, float] | None = None
    """From and to, in seconds of the recording: it is cut to that first."""

    def read(self, path: Path) -> dict[str, Any]:
        """The recording as arguments of a control."""
        reference, rate = read_recording(path, name="reference", excerpt=self.excerpt)
        return {"reference": reference, "sample_rate": rate}


@dataclass(frozen=True, kw_only=True)
class StitchedOptions(RecordingOptions):
    """Music stitched to a recording."""

    part: Path | None = None
    """Also what was generated, by itself: an audio file."""


@dataclass(frozen=True, kw_only=True)
class OutpaintOptions(StitchedOptions):
    """A recording that goes on.  The error is the mean square between latents in the overlap."""

    command: ClassVar[str] = "outpaint"

    reference: Path
    """The recording."""
    overlap: float = 2.0
    """Seconds at the recording's end that the new music begins with, in whole latents."""
    seconds: float = 10.0
    """How much is generated, the overlap included."""

    def task(self) -> Task:
        control = Outpaint(**self.read(self.reference), overlap=self.overlap, **self.asked())

        def finish(pipeline: PrestoPipeline, music: Tensor, spans: tuple[Span, ...]) -> Piece:
            end = control.reference.shape[1] / control.sample_rate
            overlap = (end - spans[0][1], end)
            return _stitched(control.join(pipeline, music), pipeline, "the recording, and how it goes on", (overlap,))

        return Task(control, self.seconds, finish)


@dataclass(frozen=True, kw_only=True)
class InpaintOptions(StitchedOptions):
    """A recording with a gap filled.  The error is the mean square between latents beside the gap."""

    command: ClassVar[str] = "inpaint"

    reference: Path
    """The recording; as much is generated as it is long."""
    gap: tuple[float, float]
    """From and to, in seconds of what is left by --excerpt."""
    overlap: float = 2.0
    """Seconds on each side of the gap that are compared, in whole latents."""

    def task(self) -> Task:
        control = Inpaint(**self.read(self.reference), gap=self.gap, overlap=self.overlap, **self.asked())

        def finish(pipeline: PrestoPipeline, music: Tensor, spans: tuple[Span, ...]) -> Piece:
            return _stitched(control.join(pipeline, music), pipeline, "the recording, its gap filled", spans)

        return Task(control, control.reference.shape[1] / control.sample_rate, finish)


@dataclass(frozen=True, kw_only=True)
class LoopOptions(StitchedOptions):
    """Music that repeats without a seam, with a recording in it or without.  The error is the mean square between
    latents in the overlaps."""

    command: ClassVar[str] = "loop"

    reference: Path | None = None
    """A recording that is part of the loop; without it the music's own end leads to its start."""
    overlap: float = 2.0
    """Seconds at each edge, in whole latents."""
    repeat: int = 1
    """How many rounds are written: 2 lets the seam be heard."""
    seconds: float = 10.0
    """How much is generated, the overlaps included."""

    def task(self) -> Task:
        if self.repeat < 1:
            raise ValueError(f"repeat must be at least 1, got {self.repeat}")
        recording = {} if self.reference is None else self.read(self.reference)
        control = Loop(**recording, overlap=self.overlap, **self.asked())

        def finish(pipeline: PrestoPipeline, music: Tensor, spans: tuple[Span, ...]) -> Piece:
            joined = control.join(pipeline, music)
            # The end of a round is no seam of its own: the music goes on there as it was made.
            rounds = [
                replace(seam, at=seam.at + number * joined.audio.shape[1])
                for number in range(self.repeat)
                for seam in joined.seams
            ]
            written = Joined(joined.audio.repeat(1, self.repeat), tuple(rounds))
            return _stitched(written, pipeline, "the loop" if self.repeat == 1 else f"the loop, {self.repeat} rounds")

        return Task(control, self.seconds, finish)


@dataclass(frozen=True, kw_only=True)
class InvertOptions(RecordingOptions):
    """The noise from which a model makes a recording, to edit it from there (--save, then --start).  The error is the
    mean square between latents."""

    command: ClassVar[str] = "invert"

    reference: Path
    """The recording; as much is generated as it is long."""
    spectral: float = 0.0
    """Weight of a mel-spectral distance beside that of the latents, for which every step decodes."""

    def task(self) -> Task:
        control = Inversion(**self.read(self.reference), spectral=self.spectral, **self.asked())

        def finish(pipeline: PrestoPipeline, music: Tensor, spans: tuple[Span, ...]) -> Piece:
            heard = Scene(pipeline, music.shape[1]).audio(control.reference, control.sample_rate)
            return Piece(music, pictures=(Picture("asked for", heard.mean(0)), Picture("obtained", music.mean(0))))

        return Task(control, control.reference.shape[1] / control.sample_rate, finish)


def _stitched(joined: Joined, pipeline: PrestoPipeline, title: str, overlaps: tuple[Span, ...] = ()) -> Piece:
    seams = tuple((seam.at + seam.width / 2) / pipeline.sample_rate for seam in joined.seams)
    return Piece(joined.audio, joined.seams, (Picture(title, joined.audio.mean(0), seams, overlaps),))
