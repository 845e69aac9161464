"""``control intensity``, ``melody``, ``structure``, ``transfer``: music with a loudness, a melody, a form."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from presto_models.ditto.commands.inputs import curve_of, melody_of, read_recording
from presto_models.ditto.commands.options import ControlOptions
from presto_models.ditto.commands.task import Task
from presto_models.ditto.intensity import Intensity
from presto_models.ditto.melody import Melody
from presto_models.ditto.structure import Structure


@dataclass(frozen=True, kw_only=True)
class IntensityOptions(ControlOptions):
    """Music as loud as a curve says.  The error is in dB squared, or with --correlation 0 to 2."""

    command: ClassVar[str] = "intensity"
    own: ClassVar[str] = "curve"

    curve: str = field()
    """A CSV file with the header seconds,db (dB re full scale), stretched to --seconds; or crescendo, decrescendo or
    swell, between -35 and -15 dB."""
    correlation: bool = False
    """Only the curve's shape counts, and not its level and range."""
    seconds: float = 10.0
    """How much is generated."""

    def task(self) -> Task:
        curve = curve_of(self.curve, self.seconds)
        return Task(Intensity(curve=curve, correlation=self.correlation, **self.asked()), self.seconds)


@dataclass(frozen=True, kw_only=True)
class MelodyOptions(ControlOptions):
    """Music with a melody.  The error is in nats a frame; 2.48 where no pitch class stands out."""

    command: ClassVar[str] = "melody"
    own: ClassVar[str] = "melody"

    melody: Path = field()
    """A CSV file with the header seconds,note (C4, F#3, Bb or rest, held until the next), or a recording."""
    seconds: float = 10.0
    """How much is generated."""
    steps: int = 60
    """Of Adam, at most."""

    def task(self) -> Task:
        return Task(Melody(**melody_of(self.melody), **self.asked()), self.seconds)


@dataclass(frozen=True, kw_only=True)
class StructureOptions(ControlOptions):
    """Music of a form: parts of one letter sound alike.  The error is in squared similarities, which are -1 to 1."""

    command: ClassVar[str] = "structure"
    own: ClassVar[str] = "form"

    form: str = field()
    """ABBA, parts of one length, or with relative lengths, "A4 B8 B8 A4"."""
    seconds: float = 10.0
    """How much is generated."""
    steps: int = 60
    """Of Adam, at most."""

    def task(self) -> Task:
        return Task(Structure(form=self.form, **self.asked()), self.seconds)


@dataclass(frozen=True, kw_only=True)
class TransferOptions(ControlOptions):
    """Music of the form a recording has: the same moments sound alike.  The error is that of `structure`."""

    command: ClassVar[str] = "transfer"

    reference: Path
    """A recording; its form is stretched to --seconds where it is longer or shorter."""
    excerpt: tuple[float, float] | None = None
    """From and to, in seconds of the recording; without it all of it."""
    seconds: float = 10.0
    """How much is generated."""
    steps: int = 60
    """Of Adam, at most."""

    def task(self) -> Task:
        reference, rate = read_recording(self.reference, name="reference", excerpt=self.excerpt)
        return Task(Structure(reference=reference, sample_rate=rate, **self.asked()), self.seconds)
