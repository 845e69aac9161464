"""Scores as plain note lists: music21 reads them once, and what is needed to play them is kept as JSON."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from presto_models.data.scores import Piece
from presto_models.files import written_beside

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
    from music21 import converter, key, meter

    score: Any
    if piece.text is not None:
        score = converter.parse(piece.text, format="abc", forceSource=True)
    else:
        score = converter.parse(piece.path, forceSource=True)
    streams = list(score.parts) or [score]
    bars = [_bars(part) for part in streams]
    order = _play_order(streams[0], len(bars[0]))
    metre, beat, declared, sharps = "4/4", 1.0, None, 0
    if signatures := list(streams[0].recurse().getElementsByClass(meter.TimeSignature)):
        metre, beat = signatures[0].ratioString, float(signatures[0].beatDuration.quarterLength)
    if keys := list(streams[0].recurse().getElementsByClass(key.KeySignature)):
        sharps = int(keys[0].sharps)
        # MusicXML says "major" where its writer did not know; ABC's own K: field is the editor's word.
        if isinstance(keys[0], key.Key) and (piece.text is not None or keys[0].mode == "minor"):
            declared = [int(keys[0].tonic.pitchClass), str(keys[0].mode)]
    starts, at = [], 0.0
    for index in order:
        starts.append(at)
        at += bars[0][index][0]
    parts = [part for part in (_notes_of(each, order, starts, beat) for each in bars) if part]
    if not parts:
        raise BadScore("no notes")
    length = max(note[0] + note[1] for part in parts for note in part)
    tempi = _tempi(bars[0], order, starts) or [[0.0, _usual_tempo(piece, parts, length)]]
    tempi[0][0] = 0.0
    return Notes(parts, tempi, starts, metre, declared, sharps, length)


def _bars(part: Any) -> list[tuple[float, Any]]:
    """Length in quarters and flat content of every measure; the whole part where it has none."""
    from music21 import stream

    measures = list(part.getElementsByClass(stream.Measure))
    if not measures:
        return [(float(part.duration.quarterLength), part.flatten())]
    ends = [float(measure.offset) for measure in measures[1:]] + [float(part.duration.quarterLength)]
    return [
        (end - float(measure.offset), measure.flatten() if measure.hasVoices() else measure)
        for measure, end in zip(measures, ends, strict=True)
    ]


def _play_order(part: Any, count: int) -> list[int]:
    """Numbers of the measures as they are played: music21 unfolds a copy that holds no notes, many times faster."""
    from music21 import note, repeat, spanner, stream

    if not 1 < count <= _SHORT_ENOUGH_TO_UNFOLD:
        return list(range(count))
    bare = stream.Part()
    of_measure = {}
    for index, measure in enumerate(part.getElementsByClass(stream.Measure)):
        copy = stream.Measure(number=index + 1)
        copy.editorial.place = index  # unlike the number, it is not counted anew while unfolding
        copy.append(note.Rest(quarterLength=measure.duration.quarterLength))
        copy.leftBarline, copy.rightBarline = deepcopy(measure.leftBarline), deepcopy(measure.rightBarline)
        for mark in measure.getElementsByClass(repeat.RepeatExpression):
            copy.insert(mark.offset, deepcopy(mark))
        of_measure[measure.id] = copy
        bare.append(copy)
    for bracket in part.recurse().getElementsByClass(spanner.RepeatBracket):
        inside = [of_measure[each.id] for each in bracket.getSpannedElements() if each.id in of_measure]
        bare.insert(0, spanner.RepeatBracket(inside, number=bracket.number))
    try:
        played = bare.expandRepeats()
    except BadScore:
        raise
    except Exception:  # marks that contradict each other: played once, as written
        return list(range(count))
    return [measure.editorial.place for measure in played.getElementsByClass(stream.Measure)]


def _notes_of(bars: list[tuple[float, Any]], order: list[int], starts: list[float], beat: float) -> list[list[float]]:
    """The notes of a part in playing order, tied ones as one."""
    from music21 import harmony

    notes: list[list[float]] = []
    held: dict[int, list[float]] = {}
    for bar, origin in zip(order, starts, strict=True):
        if bar >= len(bars):
            continue  # a part that ends before the first one does
        for element in bars[bar][1].notes:
            length = float(element.duration.quarterLength)
            if length <= 0 or isinstance(element, harmony.ChordSymbol):
                continue  # grace notes and chord names sound nothing by themselves
            start = origin + float(element.offset)
            accent = 2 if element.offset == 0 else 1 if (float(element.offset) / beat).is_integer() else 0
            for single in element.notes if element.isChord else [element]:
                pitch = int(single.pitch.midi)
                tie = single.tie or element.tie
                before = held.pop(pitch, None)
                if tie and tie.type != "start" and before and abs(before[0] + before[1] - start) < 1e-3:
                    before[1] += length
                    sounding = before
                else:
                    sounding = [start, length, pitch, accent]
                    notes.append(sounding)
                if tie and tie.type != "stop":
                    held[pitch] = sounding
    return [each for each in notes if 0 < each[2] < 128]


def _tempi(bars: list[tuple[float, Any]], order: list[int], starts: list[float]) -> list[list[float]]:
    from music21 import tempo

    found: dict[float, float] = {}
    for bar, origin in zip(order, starts, strict=True):
        for mark in bars[bar][1].getElementsByClass(tempo.MetronomeMark):
            rate = mark.getQuarterBPM()
            if rate is not None and 25 <= rate <= 250:
                found[origin + float(mark.offset)] = float(rate)
    return [[start, rate] for start, rate in sorted(found.items())]


def _usual_tempo(piece: Piece, parts: list[list[list[float]]], length: float) -> float:
    """Quarters a minute that give a kind of piece its usual onsets a second: the worth of a quarter varies too much."""
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
        raise BadScore("timeout")  # and again every second, where music21 swallowed it

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
