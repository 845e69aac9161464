"""Finished runs on disk: two files each, so that a table that is stopped goes on, and several processes can make it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from presto_models.data.audio_files import write_audio
from presto_models.files import written_beside


@dataclass(frozen=True)
class Run:
    """What one run of a row came to.

    ``number``: from 0; ``seed``: its noise.  ``caption``, ``piece``: of the held-out clip.  ``error``: of the music;
    ``before``: of the music without control; ``drift``: see :class:`presto_models.ditto.Outcome`.  ``history``: the
    error before each step of a search.  ``seconds``: of the whole call, of processor time on a CPU.  ``memory``: the
    most bytes it held beyond what was held before; None: not known.  ``made_on``: device, torch, threads.
    """

    key: str
    number: int
    seed: int
    caption: str
    piece: str
    error: float
    before: float
    drift: float
    figures: dict[str, float]
    history: list[float]
    seconds_per_step: float | None
    seconds: float
    memory: int | None
    made_on: dict[str, Any] = field(default_factory=dict)


class Runs:
    """In ``folder``: ``TASK/NAME/0003.json`` and, written before it, ``0003.flac``; the JSON vouches for both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def audio(self, row: str, number: int) -> Path:
        return self.folder / row / f"{number:04d}.flac"

    def read(self, row: str, number: int, key: str) -> Run | None:
        """None where it was not made, or under another key."""
        found = self._read(row, number, key)
        return None if found is None or "failed" in found else Run(**found)

    def failure(self, row: str, number: int, key: str) -> str | None:
        """Why it could not be made."""
        return (self._read(row, number, key) or {}).get("failed")

    def write(self, row: str, run: Run, audio: Tensor, sample_rate: int) -> None:
        """``audio`` ``[channels, T]``, made quieter where it is beyond full scale: clipping would be heard as noise."""
        self._note(row, run.number).unlink(missing_ok=True)
        write_audio(self.audio(row, run.number), audio / audio.abs().max().clamp_min(1), sample_rate)
        self._write(row, run.number, asdict(run))

    def fail(self, row: str, number: int, key: str, reason: str) -> None:
        self._write(row, number, {"key": key, "failed": reason})

    def _write(self, row: str, number: int, values: dict[str, Any]) -> None:
        with written_beside(self._note(row, number)) as beside:
            beside.write_text(json.dumps(values))

    def _read(self, row: str, number: int, key: str) -> dict[str, Any] | None:
        try:
            found = json.loads(self._note(row, number).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return found if found.get("key") == key else None

    def _note(self, row: str, number: int) -> Path:
        return self.audio(row, number).with_suffix(".json")
