"""What a person gives a ``control`` command: recordings, curves and melodies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from presto_models.data.audio_files import read_audio
from presto_models.ditto.curve import Curve, read_curve
from presto_models.ditto.notes import read_melody

LOUD, QUIET = -15.0, -35.0  # dB re full scale; our choice, within what presto-tiny plays
SHAPES = {
    "crescendo": Curve((0.0, 1.0), (QUIET, LOUD)),
    "decrescendo": Curve((0.0, 1.0), (LOUD, QUIET)),
    "swell": Curve((0.0, 0.5, 1.0), (QUIET, LOUD, QUIET)),
}


def curve_of(given: str, seconds: float) -> Curve:
    """Of a CSV file, or of one of ``SHAPES`` over so many seconds."""
    if given in SHAPES:
        shape = SHAPES[given]
        return Curve(tuple(seconds * t for t in shape.seconds), shape.db)
    if not Path(given).is_file():
        raise FileNotFoundError(f"curve: there is no file {given}; or one of {', '.join(SHAPES)}")
    return read_curve(given)


def melody_of(given: Path) -> dict[str, Any]:
    """Arguments of a :class:`presto_models.ditto.Melody`: notes of a CSV file, or a recording."""
    _check_there(given, "melody")
    if given.suffix.lower() == ".csv":
        return {"notes": read_melody(given)}
    reference, sample_rate = read_recording(given, name="melody")
    return {"reference": reference, "sample_rate": sample_rate}


def read_recording(path: Path, *, name: str, excerpt: tuple[float, float] | None = None) -> tuple[Tensor, int]:
    """Audio ``[1 or 2, samples]`` fp32 and its rate in Hz; ``name`` is what a message calls it.

    Args:
        excerpt: (from, to) in seconds; None: all of it.

    Raises:
        FileNotFoundError, ValueError: no file, no audio, or nothing where the excerpt is.
    """
    import soundfile

    _check_there(path, name)
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name}: cannot read {path} as audio: {error}") from error
    channels = info.channels if info.channels <= 2 else 1
    start, stop = excerpt or (0.0, info.duration)
    if excerpt is not None and not 0 <= start < stop <= info.duration:
        raise ValueError(
            f"excerpt must be (from, to) within the {info.duration:g} s of {path}, got {start:g} and {stop:g}"
        )
    seconds = None if excerpt is None else stop - start
    try:
        audio = read_audio(path, sample_rate=info.samplerate, channels=channels, start=start, seconds=seconds)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return audio, info.samplerate


def _check_there(path: Path, name: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{name}: there is no file {path}")
