"""Scores as plain note lists: music21 reads them once, and what is needed to play them is kept as JSON."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from presto_models.data.audio_files import written_beside
from presto_models.data.scores import Piece

_SHORT_ENOUGH_TO_UNFOLD = 200  # measures: unfolding the repeats of a whole quartet takes minutes and gains nothing
_FOLK_RATE, _DANCE_RATE, _CHORALE_RATE, _OTHER_RATE = 2.6, 4.6, 2.0, 3.5  # note onsets a second where no tempo is given
_HINTS = {"slow": 0.6, "moderate": 0.85, "plaintive": 0.7, "tender": 0.7, "animated": 1.1, "spirited": 1.15}


class BadScore(Exception):
    """A score that cannot be played; the message is the reason it is counted under."""


@dataclass(frozen=True)
class Notes:
    """A piece as notes.

    parts: for each part, notes `[start, length, MIDI pitch, accent]`, start and length in quarters, accent 2 on the
    first beat of a measure, 1 on a beat and 0 between. tempi: `[start in quarters, quarters a minute]`, the first at 0.
    measures: starts in quarters. key: `[tonic pitch class, mode]` as the score says it, or None. sharps: of the key
    signature, negative for flats.
    """

    parts: list[list[list[float]]]
    tempi: list[list[float]]
    measures: list[float]
    metre: str
    key: list[Any] | None
    sharps: int
    length: float


def cached_notes(piece: Piece, folder: Path, timeout: float) -> Notes:
    """`read_notes` through `folder/<id>.json`; BadScore (also remembered there) with the reason where it fails."""
    path = folder / f"{piece.id}.json"
    if path.exists():
        stored = json.loads(path.read_text())
    else:
        try:
            with _time_limit(timeout):
                stored = asdict(read_notes(piece))
        except BadScore as error:
            stored = {"bad": str(error)}
        except Exception as error:  # music21 raises whatever its readers stumble on
            stored = {"bad": f"music21 cannot read it ({type(error).__name__})"}
        with written_beside(path) as beside:
            beside.write_text(json.dumps(stored))
    if "bad" in stored:
        raise BadScore(stored["bad"])
    return Notes(**stored)


def read_notes(piece: Piece) -> Notes:
    """The notes of a piece, repeats unfolded where it is short; BadScore where there is nothing to play."""
    from music21 import converter, key, meter, stream

    score: Any
    if piece.text is not None:
        score = converter.parse(piece.text, format="abc", forceSource=True)
    else:
        score = converter.parse(piece.path, forceSource=True)
    streams = list(score.parts) or [score]
    parts: list[list[list[float]]] = []
    measures: list[float] = []
    tempi: list[list[float]] = []
    metre, beat, declared, sharps = "4/4", 1.0, None, 0
    for index, part in enumerate(streams):
        if len(part.getElementsByClass(stream.Measure)) <= _SHORT_ENOUGH_TO_UNFOLD:
            with suppress(Exception):  # marks that contradict each other: played once, as written
                part = part.expandRepeats()
        flat = part.stripTies().flatten()
        if index == 0:
            measures = [float(measure.offset) for measure in part.getElementsByClass(stream.Measure)] or [0.0]
            if signatures := list(flat.getElementsByClass(meter.TimeSignature)):
                metre, beat = signatures[0].ratioString, float(signatures[0].beatDuration.quarterLength)
            if keys := list(flat.getElementsByClass(key.KeySignature)):
                sharps = int(keys[0].sharps)
                if isinstance(keys[0], key.Key) and (piece.text is not None or keys[0].mode == "minor"):
                    declared = [int(keys[0].tonic.pitchClass), str(keys[0].mode)]
            tempi = _tempi(flat)
        parts.append(_notes_of(flat, measures, beat))
    parts = [part for part in parts if part]
    if not parts:
        raise BadScore("no notes")
    length = max(note[0] + note[1] for part in parts for note in part)
    if length <= 0:
        raise BadScore("no length")
    if not tempi:
        tempi = [[0.0, _usual_tempo(piece, parts, length)]]
    tempi[0][0] = 0.0
    return Notes(parts, tempi, measures, metre, declared, sharps, length)


def _notes_of(flat: Any, measures: list[float], beat: float) -> list[list[float]]:
    from music21 import harmony

    starts = set(measures)
    notes = []
    for element in flat.notes:
        length = float(element.duration.quarterLength)
        if length <= 0 or isinstance(element, harmony.ChordSymbol):
            continue  # grace notes and chord names sound nothing by themselves
        start = float(element.offset)
        accent = 2 if start in starts else 1 if (start / beat).is_integer() else 0
        notes += [[start, length, int(pitch.midi), accent] for pitch in element.pitches if 0 < pitch.midi < 128]
    return notes


def _tempi(flat: Any) -> list[list[float]]:
    from music21 import tempo

    found: dict[float, float] = {}
    for mark in flat.getElementsByClass(tempo.MetronomeMark):
        rate = mark.getQuarterBPM()
        if rate is not None and 25 <= rate <= 250:
            found[float(mark.offset)] = float(rate)
    return [[start, rate] for start, rate in sorted(found.items())]


def _usual_tempo(piece: Piece, parts: list[list[list[float]]], length: float) -> float:
    """Quarters a minute that give a kind of piece its usual onsets a second: what a quarter is worth varies too much."""
    onsets = len({note[0] for part in parts for note in part})
    rate = {"chorale": _CHORALE_RATE, "folk song": _FOLK_RATE, "classical movement": _OTHER_RATE}.get(
        piece.genre, _DANCE_RATE
    )
    hint = re.search("|".join(_HINTS), piece.hint.lower())
    if hint:
        rate *= _HINTS[hint[0]]
    return min(220.0, max(30.0, 60 * rate * length / onsets))


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """BadScore("timeout") after `seconds`; only where the system has alarms (a reader cannot be stopped otherwise)."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def late(*_: object) -> None:
        raise BadScore("timeout")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
