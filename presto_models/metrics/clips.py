"""The clips an evaluation listens to: a seeded choice from one split of a folder, read one at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from presto_models.metrics.mel import resample

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True)
class Clip:
    """A stretch of an audio file.

    Attributes:
        start, seconds: where it lies in the file.  piece: of which piece of music it is; the file's path where nothing
        says so.
        caption: the first caption, the fullest; "" where there is none.  tags: name to value.
    """

    path: Path
    start: float
    seconds: float
    piece: str
    caption: str = ""
    tags: dict[str, Any] = field(default_factory=dict)

    def read(self, sample_rate: int) -> Tensor:
        """Mono, the mean of the channels: ``[round(seconds sample_rate)]`` fp32, resampled from the file's rate."""
        return read_mono(self.path, sample_rate, start=self.start, seconds=self.seconds)


def read_mono(path: Path, sample_rate: int, *, start: float = 0.0, seconds: float | None = None) -> Tensor:
    """A stretch of an audio file, from ``start`` and of ``seconds`` (to its end: None): ``[samples]`` fp32, the mean
    of its channels.

    Raises:
        ValueError: the file is no audio soundfile can read, holds something else than finite numbers, or ends too
        early.
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            file.seek(min(round(start * file.samplerate), file.frames))
            frames = -1 if seconds is None else math.ceil(seconds * file.samplerate) + 1
            audio, rate = file.read(frames, dtype="float32", always_2d=True), file.samplerate
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} is not a whole audio file: {error}") from error
    mono = resample(torch.from_numpy(audio.mean(1)), rate, sample_rate)
    if not torch.isfinite(mono).all():
        raise ValueError(f"{path} holds values that are not finite")
    if seconds is None:
        return mono
    wanted = round(seconds * sample_rate)
    if len(mono) < wanted - 1:
        raise ValueError(f"{path} ends {(wanted - len(mono)) / sample_rate:.3f} s before {start + seconds:.3f} s")
    return torch.nn.functional.pad(mono[:wanted], (0, max(0, wanted - len(mono))))  # a sample lost to rounding


def choose_clips(
    folder: str | os.PathLike[str], num: int, seconds: float, *, seed: int, only: Sequence[str] = ()
) -> list[Clip]:
    """``num`` clips of ``seconds`` from a folder of audio files, each with a ``.json`` beside it or none.

    Every file at most once, in an order and from places the seed draws; files that are too short are passed over.

    Args:
        only: names of tags every clip must have.

    Raises:
        FileNotFoundError: there is no such folder.  ValueError: it has fewer clips that fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of audio files at {folder}")
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if num == 0:
        return []
    rng = np.random.default_rng(seed)
    found: list[Clip] = []
    for index in rng.permutation(len(files)):
        place = rng.random()
        clip = _clip(files[index], seconds, place)
        if clip is not None and all(name in clip.tags for name in only):
            found.append(clip)
            if len(found) == num:
                return found
    wanted = f" with the tags {list(only)}" if only else ""
    raise ValueError(
        f"{folder} has {len(found)} files of at least {seconds} s{wanted} among its {len(files)} audio files, "
        f"{num} are asked for"
    )


def _clip(path: Path, seconds: float, place: float) -> Clip | None:
    import soundfile

    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} is not an audio file: {error}") from error
    spare = info.frames / info.samplerate - seconds
    if spare < 0:
        return None
    described = _description(path.with_suffix(".json"))
    captions = described.get("captions") or [""]
    return Clip(
        path,
        place * spare,
        seconds,
        str(described.get("piece", path.with_suffix(""))),
        str(captions[0]),
        described.get("tags", {}),
    )


def _description(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        described = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(described, dict):
        raise ValueError(f"{path} must hold an object with captions and tags, got {type(described).__name__}")
    return described
