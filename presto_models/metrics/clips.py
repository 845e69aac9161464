"""The clips an evaluation listens to: a seeded choice from one split of a folder, read one at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from presto_models.data.audio_files import read_audio
from presto_models.data.folder import AudioFolder, AudioItem


@dataclass(frozen=True)
class Clip:
    """A stretch of an audio file.

    Attributes:
        start, seconds: where it lies in the file.  piece: of which piece of music it is.
        caption: the file's first caption, the fullest; "" where there is none.  tags: name to value.
    """

    path: Path
    start: float
    seconds: float
    piece: str
    caption: str
    tags: Mapping[str, Any]

    def read(self, sample_rate: int) -> Tensor:
        """Mono, the mean of the channels: ``[round(seconds sample_rate)]`` fp32, resampled from the file's rate."""
        return read_mono(self.path, sample_rate, start=self.start, seconds=self.seconds)


def read_mono(path: Path, sample_rate: int, *, start: float = 0.0, seconds: float) -> Tensor:
    """A stretch of an audio file: ``[round(seconds sample_rate)]`` fp32, the mean of its channels.

    Raises:
        ValueError: the file is no audio soundfile can read, holds a value that is not finite, or ends too early.
    """
    mono = read_audio(path, sample_rate=sample_rate, channels=1, start=start, seconds=seconds)[0]
    if not torch.isfinite(mono).all():
        raise ValueError(f"{path} holds values that are not finite")
    missing = round(seconds * sample_rate) - len(mono)
    if missing > 2:
        raise ValueError(f"{path} ends {missing / sample_rate:.3f} s before {start + seconds:.3f} s")
    return torch.nn.functional.pad(mono, (0, missing))  # a sample or two lost to rounding


def choose_clips(
    root: str | os.PathLike[str],
    split: str,
    num: int,
    seconds: float,
    *,
    seed: int,
    tagged: Sequence[str] = (),
    of_pieces: bool = False,
) -> list[Clip]:
    """``num`` clips of ``seconds`` from one split of a folder of audio files (:class:`AudioFolder`), in a seeded order.

    Every file at most once, from a place the seed draws; files that are too short are passed over.  More clips begin
    with the same ones.

    Args:
        tagged: names of tags every clip must have.
        of_pieces: every piece at most once, so that clips are independent draws.

    Raises:
        FileNotFoundError: there is no such folder.  ValueError: it has fewer clips that fit.
    """
    items = AudioFolder(Path(root), split=split, min_seconds=seconds).items
    fitting = [item for item in items if all(name in item.tags for name in tagged)]
    rng = np.random.default_rng(seed)
    chosen = [fitting[index] for index in rng.permutation(len(fitting))]
    if of_pieces:
        first: dict[str, AudioItem] = {}
        for item in chosen:
            first.setdefault(item.piece or str(item.path), item)
        chosen = list(first.values())
    if len(chosen) < num:
        wanted = f" with the tags {list(tagged)}" if tagged else ""
        pieces = "pieces with " if of_pieces else ""
        raise ValueError(
            f"{root} has {len(chosen)} {pieces}files of at least {seconds:g} s{wanted} in {split}, {num} are asked for"
        )
    return [
        Clip(
            item.path,
            float(rng.random() * (item.seconds - seconds)),
            seconds,
            item.piece or str(item.path),
            next(iter(item.captions), ""),
            item.tags,
        )
        for item in chosen[:num]
    ]
