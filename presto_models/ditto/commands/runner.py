"""A ``control`` command from its options to files: what all of them do in the same way."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from presto_models.ditto.commands.options import ControlOptions
from presto_models.ditto.commands.said import sentences, values
from presto_models.ditto.commands.task import Piece
from presto_models.ditto.plots import plot_optimized
from presto_models.ditto.result import Optimized
from presto_models.ditto.solver import optimize
from presto_models.outputs import DTYPES, audio_path, check_finite, check_writable, numbered, within_full_scale
from presto_models.pipeline import PrestoPipeline
from presto_models.plots import check_plot_path


def run(options: ControlOptions) -> int:
    """Optimises, writes and says what was done; the exit status.

    Raises:
        ValueError, TypeError, ArithmeticError, OSError, ImportError: what a person can act on; before the first step
            where that can be known, and never with half a file left behind.
    """
    files = _files(options)
    from rich.console import Console

    from presto_models.text import parse_tags

    tags, ditto = parse_tags(options.tags) or None, options.ditto()
    task = options.task()
    controls = [task.control, *options.also(task.seconds)]
    started = time.perf_counter()
    with Console(stderr=True).status(f"loading {options.checkpoint} ..."):
        dtype = None if options.dtype is None else DTYPES[options.dtype]
        pipeline = PrestoPipeline.from_pretrained(options.checkpoint, device=options.device, dtype=dtype)
    loaded = time.perf_counter()
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        made = optimize(
            pipeline,
            controls,
            prompt=options.prompt,
            seconds=task.seconds,
            seed=options.seed,
            tags=tags,
            num_samples=options.num_samples,
            stereo=options.stereo,
            options=ditto,
            start=options.start,
            save=options.save,
            resume=options.resume,
            progress=not options.json,
        )
        music = made.waveform.cpu()  # waits for the device
    took = time.perf_counter() - loaded
    for note in notes:
        print(f"note: {note.message}", file=sys.stderr)
    check_finite(music)
    order = best_first(made)
    spans = next(iter(made.outcomes.values())).spans
    pieces = [task.finish(pipeline, music[index], spans) for index in order]
    _write(options, made, order, pieces, files)
    said = values(options, pipeline, made, order, [piece.seams for piece in pieces])
    said |= {
        "files": list(map(str, files.pieces)),
        "parts": list(map(str, files.parts)),
        "plots": list(map(str, files.plots)),
        "save": None if options.save is None else str(options.save),
        "load_s": round(loaded - started, 4),
        "took_s": round(took, 4),
    }
    print(json.dumps(said) if options.json else sentences(said))
    return 0


def best_first(made: Optimized) -> list[int]:
    """The samples by falling quality: by the weighted sum of the errors of the finished music."""
    weighted = torch.stack([outcome.weight * outcome.error for outcome in made.outcomes.values()])
    return weighted.sum(0).argsort(stable=True).tolist()


@dataclass(frozen=True)
class _Files:
    """Where everything goes, one for each candidate; ``plots`` or ``parts`` is empty where none are wanted."""

    pieces: list[Path]
    plots: list[Path]
    parts: list[Path]


def _files(options: ControlOptions) -> _Files:
    """Every path, checked before anything is computed."""
    count = options.num_samples
    if count < 1:
        raise ValueError(f"num_samples must be at least 1, got {count}")
    pieces = numbered(audio_path(options.out), count)
    plots: list[Path] = []
    if not options.no_plot:
        plots = numbered(check_plot_path(options.plot or options.out.with_suffix(".png")), count)
    part: Path | None = getattr(options, "part", None)
    parts = [] if part is None else numbered(audio_path(part, name="part"), count)
    saved = [] if options.save is None else [options.save]
    for path in (*pieces, *plots, *parts, *saved):
        check_writable(path)
    return _Files(pieces, plots, parts)


def _write(
    options: ControlOptions, made: Optimized, order: Sequence[int], pieces: Sequence[Piece], files: _Files
) -> None:
    from presto_models.data.audio_files import write_audio

    for place, (index, piece) in enumerate(zip(order, pieces, strict=True)):
        path = files.pieces[place]
        write_audio(path, within_full_scale(piece.audio, path), made.sample_rate)
        if files.parts:
            part = files.parts[place]
            write_audio(part, within_full_scale(made.waveform[index].cpu(), part), made.sample_rate)
        if files.plots:
            title = f"{options.command}: {options.prompt}  (seed {made.seeds[index]})"
            plot_optimized(made, files.plots[place], index=index, title=title, pictures=piece.pictures)
