"""What a ``control`` command asks of a pipeline, and what becomes of the music it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from presto_models.ditto.control import Control, Span
from presto_models.ditto.plots import Picture
from presto_models.ditto.stitching import Seam
from presto_models.pipeline import PrestoPipeline


@dataclass(frozen=True, eq=False)
class Piece:
    """A finished piece ``[channels, samples]``, its seams, and what is shown of it beside the controls."""

    audio: Tensor
    seams: tuple[Seam, ...] = ()
    pictures: tuple[Picture, ...] = ()


# (pipeline, music [channels, samples] on the CPU as loud as the model made it, the control's spans) to what is written.
Finish = Callable[[PrestoPipeline, Tensor, tuple[Span, ...]], Piece]


def as_generated(pipeline: PrestoPipeline, music: Tensor, spans: tuple[Span, ...]) -> Piece:
    """What was generated is the piece."""
    return Piece(music)


@dataclass(frozen=True, eq=False)
class Task:
    """The command's own control, how many seconds are generated, and how the piece is finished."""

    control: Control
    seconds: float
    finish: Finish = as_generated
