"""One rendering of a piece as drawn from its seed: tempo, transposition, instruments, seating, captions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from presto_models.data.notes import Notes
from presto_models.data.scores import Piece

TEMPO_FACTORS = (0.75, 1.3)
TRANSPOSITIONS = 4  # semitones either way
SLOW, FAST = 2.2, 4.2  # note onsets a second: below is slow, above is fast
MAX_SECONDS, MIN_SECONDS, TAIL = 60.0, 6.0, 1.0
_STROPHES_UNTIL = 20.0  # seconds: a shorter song is sung again, at most three times
_DOUBLED = 0.35  # share of melodies that a second instrument plays an octave below

# General MIDI programs (counted from 0) from the highest part to the lowest, and the octaves a melody is moved by.
ENSEMBLES: dict[str, tuple[int, ...]] = {
    "piano": (0,),
    "harpsichord": (6,),
    "church organ": (19,),
    "accordion": (21,),
    "guitar": (24,),
    "harp": (46,),
    "music box": (10,),
    "vibraphone": (11,),
    "marimba": (12,),
    "choir": (52,),
    "string quartet": (40, 40, 41, 42),
    "string orchestra": (48,),
    "brass": (56, 60, 57, 58),
    "woodwinds": (73, 68, 71, 70),
    "saxophones": (64, 65, 66, 67),
}
MELODIES: dict[str, tuple[int, int]] = {
    "violin": (40, 0),
    "cello": (42, -1),
    "flute": (73, 0),
    "recorder": (74, 0),
    "oboe": (68, 0),
    "clarinet": (71, 0),
    "trumpet": (56, 0),
    "accordion": (21, 0),
    "bagpipe": (109, 0),
    "banjo": (105, 0),
    "guitar": (24, -1),
    "harp": (46, 0),
    "piano": (0, 0),
    "harpsichord": (6, 0),
    "church organ": (19, 0),
    "music box": (10, 1),
    "vibraphone": (11, 0),
    "marimba": (12, 0),
}
_FAVOURED = {  # drawn this many times as often as the others
    "bach": {"church organ": 4, "choir": 3, "piano": 2, "string quartet": 2, "brass": 2},
    "classical movement": {"string quartet": 5, "piano": 2, "woodwinds": 2},
    "ragtime": {"piano": 5, "banjo": 2},
    "dance": {"violin": 4, "flute": 2, "accordion": 2, "banjo": 2, "bagpipe": 1},
}
_FROM = {"ryansMammoth": "american", "oneills1850": "irish", "essenFolksong": "traditional"}
_TONICS = ("c", "c sharp", "d", "e flat", "e", "f", "f sharp", "g", "a flat", "a", "b flat", "b")
_MINOR_MODES = ("minor", "dorian", "phrygian", "aeolian", "locrian")
# Krumhansl and Kessler's probe-tone ratings for the tonic's key, from the tonic upwards.
_MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
_MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)


@dataclass(frozen=True)
class Arrangement:
    """What the synthesizer plays: programs and pan (0 to 127) by channel, events sorted in seconds, and the length.

    events: `(seconds, channel, MIDI pitch, velocity)`, velocity 0 ends a note. `cut`: the piece goes on after the end.
    """

    programs: tuple[int, ...]
    pans: tuple[int, ...]
    events: list[tuple[float, int, int, int]]
    seconds: float
    cut: bool
    captions: list[str]
    tags: dict[str, Any]


def arrange(piece: Piece, notes: Notes, *, seed: int, variation: int) -> Arrangement | None:
    """The rendering number `variation` of a piece, the same for a seed wherever it is made; None below 6 seconds."""
    digest = hashlib.sha256(f"{seed}/{piece.id}/{variation}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    factor = float(np.exp(rng.uniform(*np.log(TEMPO_FACTORS))))
    shift = int(rng.integers(-TRANSPOSITIONS, TRANSPOSITIONS + 1))
    names, programs, octaves = _instruments(piece, notes, rng)

    clock = _Clock(notes, factor)
    start, end = _window(notes, clock, rng)
    origin = float(clock(start))
    parts = [[n for n in part if start <= n[0] < end] for part in notes.parts]
    parts = sorted((p for p in parts if p), key=lambda part: -float(np.mean([n[2] for n in part])))[:15]
    if not parts:
        return None
    length = float(clock(end)) - origin
    times = 1
    if piece.genre.startswith("folk") and length < _STROPHES_UNTIL:
        times = min(3, int(np.ceil(_STROPHES_UNTIL / length)))
    cut = end < notes.length
    seconds = min(MAX_SECONDS, length * times + (0 if cut else TAIL))
    if seconds < MIN_SECONDS:
        return None

    if len(parts) == 1 and len(programs) == 2:
        parts = [parts[0], parts[0]]
    seats = [round(rank * (len(programs) - 1) / max(1, len(parts) - 1)) for rank in range(len(parts))]
    spread = 30 if len(set(programs)) > 1 else 18
    centre = (len(parts) - 1) / 2
    pans = tuple(64 + round(spread * (rank - centre) / centre) if centre else 64 for rank in range(len(parts)))
    swell, period = rng.uniform(3, 10), rng.uniform(5, 15)
    legato = rng.uniform(0.85, 1.0)
    events: list[tuple[float, int, int, int]] = []
    for channel, part in enumerate(parts):
        octave = 12 * (octaves[channel] if len(octaves) > channel else 0)
        for begin, quarters, pitch, accent in part:
            on = float(clock(begin)) - origin
            off = on + max(0.06, legato * (float(clock(begin + quarters)) - origin - on))
            loud = 74 + 6 * accent + swell * np.sin(2 * np.pi * on / period) + rng.normal(0, 3)
            late = abs(rng.normal(0, 0.006))
            key = int(pitch) + shift + octave
            velocity = int(np.clip(loud, 30, 120))
            for strophe in range(times):
                events.append((strophe * length + on + late, channel, key, velocity))
                events.append((strophe * length + off + late, channel, key, 0))
    events = sorted((e for e in events if e[0] < seconds and 0 < e[2] < 128), key=lambda e: (e[0], e[3] > 0, e[1:]))
    onsets = len({note[0] for part in parts for note in part}) / length
    tags = _tags(piece, notes, parts, shift) | {
        "tempo": "slow" if onsets < SLOW else "fast" if onsets > FAST else "moderate",
        "instrument": names[0] if len(names) == 1 else list(names),
        "notes_per_second": round(onsets, 2),
        "beats_per_minute": round(60 * (end - start) / length / _beat(notes.metre), 1),
        "tempo_factor": round(factor, 3),
        "transposition": shift,
    }
    chosen = tuple(programs[seat] for seat in seats)
    return Arrangement(chosen, pans, events, seconds, cut, captions(tags, rng), tags)


def _instruments(
    piece: Piece, notes: Notes, rng: np.random.Generator
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """The names to say, programs from high to low, and octaves to move by."""
    if len(notes.parts) > 1:
        favoured = _FAVOURED.get(piece.collection) or _FAVOURED.get(piece.genre, {})
        names = list(ENSEMBLES) + (["banjo"] if piece.genre == "ragtime" else [])
        weights = np.array([favoured.get(name, 1) for name in names], float)
        name = str(rng.choice(names, p=weights / weights.sum()))
        return (name,), ENSEMBLES.get(name, (105,)), ()
    favoured = {} if piece.collection == "essenFolksong" else _FAVOURED["dance"]
    names = list(MELODIES)
    weights = np.array([favoured.get(name, 1) for name in names], float)
    first = str(rng.choice(names, p=weights / weights.sum()))
    program, octave = MELODIES[first]
    if rng.random() >= _DOUBLED:
        return (first,), (program,), (octave,)
    second = str(rng.choice([name for name in names if name != first]))
    return (first, second), (program, MELODIES[second][0]), (octave, MELODIES[second][1] - 1)


class _Clock:
    """Seconds at a place in quarters, through the score's tempi times the drawn factor."""

    def __init__(self, notes: Notes, factor: float):
        self.starts = np.array([start for start, _ in notes.tempi])
        self.pace = 60 / (factor * np.array([rate for _, rate in notes.tempi]))
        self.at = np.concatenate([[0.0], np.cumsum(np.diff(self.starts) * self.pace[:-1])])

    def __call__(self, quarters: float | np.ndarray) -> np.ndarray:
        index = np.maximum(np.searchsorted(self.starts, quarters, side="right") - 1, 0)
        return np.asarray(self.at[index] + (quarters - self.starts[index]) * self.pace[index])


def _window(notes: Notes, clock: _Clock, rng: np.random.Generator) -> tuple[float, float]:
    """All of a short piece, else up to a minute from a measure that leaves at least half of that after it."""
    total = float(clock(notes.length))
    if total <= MAX_SECONDS - TAIL:
        return 0.0, notes.length
    at = clock(np.array(notes.measures))
    usable = np.flatnonzero(at <= total - MAX_SECONDS / 2)
    first = int(rng.choice(usable)) if len(usable) else 0
    start = float(notes.measures[first]) if len(usable) else 0.0
    grid = np.linspace(start, notes.length, 4000)
    return start, float(grid[clock(grid) - clock(start) <= MAX_SECONDS][-1])


def _tags(piece: Piece, notes: Notes, parts: list[list[list[float]]], shift: int) -> dict[str, Any]:
    tonic, mode = notes.key or _krumhansl(parts, notes.sharps)
    return {
        "collection": piece.collection,
        "genre": piece.genre,
        "mode": "minor" if mode in _MINOR_MODES else "major",
        "key": f"{_TONICS[(tonic + shift) % 12]} {mode}",
        "metre": notes.metre,
    }


def _krumhansl(parts: list[list[list[float]]], sharps: int) -> tuple[int, str]:
    """Krumhansl and Schmuckler: the key whose profile fits the time each pitch class sounds, near the signature."""
    sounding = np.zeros(12)
    for part in parts:
        for _, length, pitch, _ in part:
            sounding[int(pitch) % 12] += length
    fits = {}
    for mode, profile in (("major", _MAJOR), ("minor", _MINOR)):
        for tonic in range(12):
            own = (sharps * 7 + (0 if mode == "major" else 9)) % 12 == tonic
            fits[tonic, mode] = float(np.corrcoef(sounding, np.roll(profile, tonic))[0, 1]) + (0.15 if own else 0.0)
    return max(fits, key=lambda each: fits[each])


def _beat(metre: str) -> float:
    """Length of the felt beat in quarters: three units in 6/8, 9/8 and 12/8, else one."""
    upper, lower = (int(number) for number in metre.split("/"))
    return 4 / lower * (3 if upper % 3 == 0 and upper > 3 else 1)


def captions(tags: dict[str, Any], rng: np.random.Generator) -> list[str]:
    """Three wordings from full to short; every word of them is one of the tags, or their composer or origin."""
    tempo, genre, collection = tags["tempo"], tags["genre"], tags["collection"]
    name = tags["instrument"] if isinstance(tags["instrument"], str) else " and ".join(tags["instrument"])
    origin = _FROM.get(collection, collection)
    metre = {"3/4": "waltz time", "6/8": "six eight time", "2/4": "two four time"}.get(tags["metre"], "")
    third = f"{origin} {genre} played by {name}, {tags['mode']} key, {tempo} tempo"
    return [
        f"{tempo} {name} {genre} in {tags['key']}, {origin}",
        f"a {tempo} {genre} for {name}" + (f" in a {tags['mode']} key" if rng.random() < 0.5 else ""),
        third + (f", {metre}" if metre else ""),
    ]
