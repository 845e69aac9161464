"""A melody as notes, and how they are written down."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_models.ditto.tables import check_times, read_table

REST = -1
_SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_ACCIDENTALS = {"#": 1, "♯": 1, "b": -1, "♭": -1}
_NOTE = re.compile(r"([A-Ga-g])([#♯b♭]*)(-?\d+)?")


@dataclass(frozen=True)
class Notes:
    """``classes``: pitch classes, 0 (C) to 11 (B) or -1 for a rest, each from its ``seconds`` on until the next.

    Raises:
        ValueError: none, lengths that differ, times that do not increase, a class that there is not.
    """

    seconds: tuple[float, ...]
    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", tuple(float(t) for t in self.seconds))
        object.__setattr__(self, "classes", tuple(self.classes))
        if len(self.seconds) != len(self.classes) or not self.classes:
            raise ValueError(
                f"notes: there must be at least one, each with its time, got {len(self.classes)} notes and "
                f"{len(self.seconds)} times"
            )
        check_times(self.seconds, "notes")
        for value in self.classes:
            if isinstance(value, bool) or not isinstance(value, int) or not REST <= value < 12:
                raise ValueError(f"notes: pitch classes must be 0 (C) to 11 (B), or -1 for a rest, got {value!r}")

    def at(self, times: Tensor) -> Tensor:
        """The class at each of ``times``, int64; -1 before the first note."""
        index = torch.searchsorted(torch.tensor(self.seconds, dtype=torch.float64), times.double(), right=True)
        return torch.tensor((REST, *self.classes))[index]


def read_melody(path: str | os.PathLike[str]) -> Notes:
    """Of a CSV file with the header ``seconds,note``: ``C4``, ``F#3``, ``Bb`` or ``rest``, each held until the next.

    The octave may be left out: what is compared are pitch classes.

    Raises:
        FileNotFoundError, ValueError: says which line of which file, what came and what fits.
    """
    table = read_table(path, "note")
    classes = tuple(pitch_class(value, f"{path}, line {line}: note") for line, _, value in table)
    try:
        return Notes(tuple(seconds for _, seconds, _ in table), classes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def pitch_class(text: str, name: str = "note") -> int:
    """0 (C) to 11 (B) of a note's name, -1 of ``rest``; ``name`` is what an error calls it."""
    if text.lower() == "rest":
        return REST
    found = _NOTE.fullmatch(text)
    if found is None:
        raise ValueError(f"{name} must be a name such as C4, F#3 or Bb, or rest, got {text!r}")
    letter, accidentals, _ = found.groups()
    return (_SEMITONES[letter.upper()] + sum(_ACCIDENTALS[a] for a in accidentals)) % 12
