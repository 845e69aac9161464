"""Any folder of audio files with captions as a training set; its crops depend on nothing but a seed and a number."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from presto_models.data.audio_files import _soundfile, read_audio
from presto_models.data.scores import HELD_OUT_SHARE, SPLITS

AUDIO = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")
_TRIES = 10
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioItem:
    """One audio file, its captions (maybe none) and its tags; `piece` is what must not be in two splits."""

    path: Path
    seconds: float
    captions: tuple[str, ...] = ()
    tags: Mapping[str, Any] = field(default_factory=dict)
    piece: str = ""


class AudioFolder:
    """The usable audio files of one split below `root`, sorted by path.

    Beside `name.wav` (flac, ogg, mp3, aiff) lies `name.json`, `{"caption": str | "captions": [str], "tags": {...}}`, or
    `name.txt` with a caption a line. The split is the first of: a folder `train`, `validation` or `test` on the way to
    the file; "split" in its JSON; else a hash of "piece" in the JSON or of the file's name, 90 / 5 / 5. `split=None`
    takes all. `without` leaves out items by tag, `{"collection": ["joplin"]}`. Files that cannot be read, are shorter
    than `min_seconds`, or have no caption where `captioned` asks for one, are skipped and counted in `.skipped`.

    Raises FileNotFoundError where `root` is no folder, ValueError for another split or where nothing usable is left.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: str | None,
        captioned: bool = False,
        min_seconds: float = 0.0,
        without: Mapping[str, Collection[Any]] | None = None,
    ):
        self.root, self.split = Path(root), split
        if split is not None and split not in SPLITS:
            raise ValueError(f"split: {split!r}; choose from {', '.join(SPLITS)} or None for all")
        if not self.root.is_dir():
            raise FileNotFoundError(f"root: there is no folder {root}")
        self.items: list[AudioItem] = []
        self.skipped: Counter[str] = Counter()
        for path in _with_progress(sorted(p for p in self.root.rglob("*") if p.suffix.lower() in AUDIO)):
            if path.name.startswith("."):
                continue  # being written
            try:
                described = _description(path)
                item_split = _split_of(path.relative_to(self.root), described)
                if split is not None and item_split != split:
                    continue
                item = _item(path, described)
            except ValueError as error:
                self.skipped[str(error)] += 1
                continue
            if any(set(_several(item.tags.get(name))) & set(values) for name, values in (without or {}).items()):
                self.skipped["left out by its tags"] += 1
            elif item.seconds < min_seconds:
                self.skipped["too short"] += 1
            elif captioned and not item.captions:
                self.skipped["no caption"] += 1
            else:
                self.items.append(item)
        if not self.items:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items()) or "no audio files"
            raise ValueError(f"root: nothing usable in {root} for split {split!r} ({reasons})")
        if self.skipped:
            _logger.warning("%s: %d files skipped: %s", root, self.skipped.total(), dict(self.skipped))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def seconds(self) -> float:
        return sum(item.seconds for item in self.items)


class Crops(Dataset[dict[str, Any]]):
    """Random crops of a folder: number i is the same crop for a seed, whatever was read before, so runs can resume.

    `crops[i]` is `{"audio": [channels, samples] fp32, "caption": str, "item": int}`: a file drawn in proportion to its
    length, a place in it, one of its captions ("" where it has none), and its number in `folder.items`. A file
    shorter than `seconds` is followed by silence. `length` (default: as many as the folder holds end to end) is what
    `len` says. A file that turns out broken is counted in `.broken` and another drawn; RuntimeError after ten in a row.
    """

    def __init__(
        self,
        folder: AudioFolder,
        *,
        seconds: float,
        channels: int,
        seed: int,
        sample_rate: int = 44_100,
        length: int | None = None,
    ):
        if seconds <= 0:
            raise ValueError(f"seconds: {seconds} is not above 0")
        self.folder, self.seconds, self.channels, self.seed, self.sample_rate = (
            folder,
            seconds,
            channels,
            seed,
            sample_rate,
        )
        self.length = max(1, int(folder.seconds / seconds)) if length is None else length
        self.broken: Counter[str] = Counter()
        self._until = np.cumsum([item.seconds for item in folder.items])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"crop {index} of {self.length}")
        rng = np.random.default_rng([self.seed, index])
        for _ in range(_TRIES):
            number = min(
                int(np.searchsorted(self._until, rng.random() * self._until[-1], "right")), len(self.folder) - 1
            )
            item = self.folder.items[number]
            start = rng.random() * max(0.0, item.seconds - self.seconds)
            caption = str(rng.choice(item.captions)) if item.captions else ""
            try:
                audio = read_audio(
                    item.path, sample_rate=self.sample_rate, channels=self.channels, start=start, seconds=self.seconds
                )
            except (ValueError, OSError) as error:
                _logger.warning("skipped: %s", error)
                self.broken[str(item.path)] += 1
                continue
            return {"audio": _padded(audio, round(self.seconds * self.sample_rate)), "caption": caption, "item": number}
        raise RuntimeError(f"crop {index}: {_TRIES} files in a row cannot be read, the last {item.path}")


def _padded(audio: Tensor, samples: int) -> Tensor:
    return torch.nn.functional.pad(audio, (0, samples - audio.shape[1]))


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _description(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    if beside.is_file():
        try:
            described = json.loads(beside.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError("description is no JSON") from error
        if not isinstance(described, dict):
            raise ValueError("description is no JSON object")
        return described
    if path.with_suffix(".txt").is_file():
        lines = path.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return {"captions": [line.strip() for line in lines if line.strip()]}
    return {}


def _split_of(path: Path, described: Mapping[str, Any]) -> str:
    for part in path.parts[:-1]:
        if part in SPLITS:
            return part
    if "split" in described:
        return str(described["split"])
    place = int.from_bytes(hashlib.sha256(_piece(path, described).encode()).digest()[:8], "big") / 2**64
    return "test" if place < HELD_OUT_SHARE else "validation" if place < 2 * HELD_OUT_SHARE else "train"


def _piece(path: Path, described: Mapping[str, Any]) -> str:
    return str(described.get("piece", path.stem))


def _item(path: Path, described: Mapping[str, Any]) -> AudioItem:
    soundfile = _soundfile()
    captions = described.get("captions", [described["caption"]] if "caption" in described else [])
    tags = described.get("tags", {})
    if not isinstance(captions, list) or not all(isinstance(each, str) for each in captions):
        raise ValueError("captions are no strings")
    if not isinstance(tags, dict):
        raise ValueError("tags are no JSON object")
    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        raise ValueError("no readable audio") from error
    if info.frames == 0:
        raise ValueError("no samples")
    seconds = info.frames / info.samplerate
    return AudioItem(path, seconds, tuple(captions), tags, _piece(path, described))


def _with_progress(paths: list[Path]) -> Any:
    from rich.progress import track

    return track(paths, "reading the folder", transient=True, disable=len(paths) < 5000 or not sys.stdout.isatty())
