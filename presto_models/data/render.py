"""`data render`: hours of stereo music from public-domain scores, captioned and split by piece.

Each collection has its own row of jobs (piece, variation) in an order shuffled by the seed, and its share of the hours.
Jobs run in any number of processes and are counted in their row's order, so that the clips are the same for a seed
however many workers there are and however often the run was killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from presto_models.data.arrangement import arrange
from presto_models.data.audio_files import write_audio
from presto_models.data.notes import BadScore, cached_notes
from presto_models.data.scores import COLLECTIONS, SPLITS, Piece, find_pieces
from presto_models.data.synth import SAMPLE_RATE, Player, find_soundfont
from presto_models.files import written_beside

SHARES = {
    "bach": 0.25,
    "ryansMammoth": 0.12,
    "oneills1850": 0.12,
    "essenFolksong": 0.12,
    "beethoven": 0.14,
    "mozart": 0.09,
    "haydn": 0.07,
    "joplin": 0.09,
}
MAX_VARIATIONS = 200
_VERSION = 2  # raise when the same seed gives other clips


@dataclass(frozen=True)
class RenderOptions:
    """What `data render` takes."""

    out: str
    """Folder for the clips; a run into the same folder goes on where it was."""
    hours: float = 8.0
    """Hours of audio over all collections and splits."""
    seed: int = 0
    """Draws the order of pieces and every clip's tempo, transposition and instruments."""
    workers: int = 0
    """Processes; 0 takes one for each core."""
    soundfont: str | None = None
    """A General MIDI SoundFont; by default FluidR3 from the system, else pretty_midi's TimGM6mb."""
    collections: tuple[str, ...] = COLLECTIONS
    """Which of music21's collections."""
    splits: tuple[str, ...] = SPLITS
    """Which splits; the hours are of these alone.  Into a folder that has clips it adds to them."""
    timeout: float = 300.0
    """Seconds that reading one score may take before it is skipped."""


@dataclass(frozen=True)
class Clip:
    """A finished clip as the manifest has it, or why there is none (`skipped`)."""

    id: str
    piece: str
    seconds: float = 0.0
    skipped: str = ""
    record: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Row:
    """One collection's jobs in order: those under way in front, those counted summed up."""

    quota: float
    jobs: Iterator[tuple[Piece, int]]
    under_way: deque[tuple[Piece, Future[Clip]]] = field(default_factory=deque)
    counted: float = 0.0
    exhausted: bool = False

    @property
    def done(self) -> bool:
        return self.counted >= self.quota or (self.exhausted and not self.under_way)

    @property
    def share(self) -> float:
        return (self.counted + 45.0 * len(self.under_way)) / self.quota


def run(options: RenderOptions) -> None:
    """Renders, and prints what `out/summary.json` has.

    Raises ValueError for options out of range, or where `out` holds clips of another seed or SoundFont,
    FileNotFoundError where there is no SoundFont, and OSError where the disk is full; finished clips stay and a later
    run goes on.
    """
    if options.hours <= 0:
        raise ValueError(f"hours: {options.hours} is not above 0")
    if options.workers < 0:
        raise ValueError(f"workers: {options.workers} is below 0")
    unknown = sorted(set(options.splits) - set(SPLITS))
    if unknown or not options.splits:
        raise ValueError(f"splits: {', '.join(unknown) or 'none'} given; choose from {', '.join(SPLITS)}")
    soundfont = find_soundfont(options.soundfont)
    out = Path(options.out)
    _same_settings(out, {"version": _VERSION, "seed": options.seed, "soundfont": soundfont.name})
    pieces = [piece for piece in find_pieces(collections=options.collections) if piece.split in options.splits]
    summary = render_pieces(pieces, soundfont, options)
    print(
        f"{summary['clips']} clips in {options.out}; hours: {summary['hours']}; skipped: {summary['skipped'] or 'none'}"
    )


def render_pieces(pieces: Sequence[Piece], soundfont: Path, options: RenderOptions) -> dict[str, Any]:
    """As `run`, of these pieces; returns the summary."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    out = Path(options.out)
    present = [name for name in COLLECTIONS if any(piece.collection == name for piece in pieces)]
    whole = sum(SHARES[name] for name in present)
    rows = {
        name: _Row(
            quota=options.hours * 3600 * SHARES[name] / whole,
            jobs=_jobs([piece for piece in pieces if piece.collection == name], options.seed),
        )
        for name in present
    }
    manifest = _Manifest(out)
    bad: dict[str, str] = {}
    workers = options.workers or os.cpu_count() or 1
    columns = (TextColumn("rendering"), BarColumn(), TextColumn("{task.completed:.2f} of {task.total:.2f} h"))
    with (
        ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(str(soundfont),)
        ) as pool,
        Progress(
            *columns,
            TextColumn("{task.fields[skipped]} skipped"),
            TimeRemainingColumn(),
            transient=True,
            disable=not sys.stdout.isatty(),
        ) as bar,
    ):
        task = bar.add_task("render", total=options.hours, skipped=0)
        try:
            while any(not row.done for row in rows.values()):
                while sum(not future.done() for row in rows.values() for _, future in row.under_way) < 2 * workers:
                    open_rows = [row for row in rows.values() if not row.done and not row.exhausted and row.share < 1.2]
                    if not open_rows:
                        break
                    row = min(open_rows, key=lambda each: each.share)
                    job = next((job for job in row.jobs if job[0].id not in bad), None)
                    if job is None:
                        row.exhausted = True
                    else:
                        future = pool.submit(_render_job, *job, str(out), options.seed, options.timeout)
                        row.under_way.append((job[0], future))
                futures = [future for row in rows.values() for _, future in row.under_way if not future.done()]
                if futures and not any(row.under_way and row.under_way[0][1].done() for row in rows.values()):
                    wait(futures, return_when=FIRST_COMPLETED)
                for row in rows.values():
                    while row.under_way and row.under_way[0][1].done() and not row.done:
                        piece, future = row.under_way.popleft()
                        clip = future.result()
                        if clip.skipped:
                            bad[piece.id] = clip.skipped
                        else:
                            row.counted += clip.seconds
                            manifest.add(clip.record)
                    if row.done:
                        for _, future in row.under_way:
                            future.cancel()
                        row.under_way.clear()
                bar.update(task, completed=sum(row.counted for row in rows.values()) / 3600, skipped=len(bad))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            manifest.write()
            raise
    return manifest.finish(bad, {"seed": options.seed, "soundfont": soundfont.name})


def _jobs(pieces: Sequence[Piece], seed: int) -> Iterator[tuple[Piece, int]]:
    """Every piece once in an order of its own, then every piece again as another variation."""
    for variation in range(MAX_VARIATIONS):
        for index in np.random.default_rng([seed, variation]).permutation(len(pieces)):
            yield pieces[index], variation


_player: Player | None = None


def _start_worker(soundfont: str) -> None:
    global _player
    torch.set_num_threads(1)
    _player = Player(Path(soundfont))
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _render_job(piece: Piece, variation: int, out: str, seed: int, timeout: float) -> Clip:
    """Renders one clip, the sound first and its description last, unless both are there already."""
    assert _player is not None
    name = f"{piece.id}-v{variation}"
    description = Path(out) / piece.split / f"{name}.json"
    if description.exists():
        record = json.loads(description.read_text())
        return Clip(name, piece.id, record["seconds"], record=record)
    try:
        notes = cached_notes(piece, Path(out) / "midi", timeout)
    except BadScore as error:
        return Clip(name, piece.id, skipped=str(error))
    try:
        arrangement = arrange(piece, notes, seed=seed, variation=variation)
        if arrangement is None:
            return Clip(name, piece.id, skipped="shorter than 6 s")
        sound = _player.play(arrangement)
    except Exception as error:  # a score may say anything; one of thousands must not end the run
        return Clip(name, piece.id, skipped=f"cannot be played ({type(error).__name__}: {error})")
    audio = description.with_suffix(".wav")
    write_audio(audio, torch.from_numpy(sound.T), SAMPLE_RATE)
    record = {
        "id": name,
        "file": f"{piece.split}/{audio.name}",
        "seconds": len(sound) / SAMPLE_RATE,
        "split": piece.split,
        "piece": piece.id,
        "title": piece.title,
        "captions": arrangement.captions,
        "tags": arrangement.tags,
    }
    with written_beside(description) as beside:
        beside.write_text(json.dumps(record, ensure_ascii=False))
    return Clip(name, piece.id, record["seconds"], record=record)


class _Manifest:
    """`manifest.jsonl`, one clip a line, rewritten beside every few seconds; what an earlier run counted stays."""

    def __init__(self, out: Path):
        self.out = out
        self.path = out / "manifest.jsonl"
        self.clips: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            lines = [json.loads(line) for line in self.path.read_text().splitlines()]
            self.clips = {line["id"]: line for line in lines if (out / line["file"]).exists()}
        self.written = 0.0

    def add(self, record: dict[str, Any]) -> None:
        self.clips[record["id"]] = record
        if time.monotonic() - self.written > 5:
            self.write()

    def write(self) -> None:
        with written_beside(self.path) as beside:
            beside.write_text("".join(json.dumps(clip, ensure_ascii=False) + "\n" for clip in self.clips.values()))
        self.written = time.monotonic()

    def finish(self, bad: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
        """Writes the last state and the summary, and removes clips that were made ahead and not counted."""
        self.write()
        for split in SPLITS:
            for path in (self.out / split).glob("*"):
                if path.stem not in self.clips:
                    path.unlink()
        seconds: Counter[str] = Counter()
        for clip in self.clips.values():
            seconds[clip["split"]] += clip["seconds"]
            seconds[clip["tags"]["collection"]] += clip["seconds"]
        summary = settings | {
            "clips": len(self.clips),
            "hours": {name: round(total / 3600, 3) for name, total in seconds.items()},
            "skipped": dict(Counter(bad.values())),
            "skipped_pieces": bad,
        }
        with written_beside(self.out / "summary.json") as beside:
            beside.write_text(json.dumps(summary, indent=1))
        return summary


def _same_settings(out: Path, settings: dict[str, Any]) -> None:
    path = out / "settings.json"
    if path.exists():
        if (before := json.loads(path.read_text())) != settings:
            raise ValueError(f"out: {out} was rendered with {before}, not {settings}; choose another folder")
        return
    with written_beside(path) as beside:
        beside.write_text(json.dumps(settings))
