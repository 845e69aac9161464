"""One ``control`` command from its options to files: what all of them do in the same way."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from presto_models.ditto.commands.also import also_controls, check_also
from presto_models.ditto.commands.options import ControlOptions
from presto_models.ditto.control import Control
from presto_models.ditto.plots import Picture, plot_optimized
from presto_models.ditto.result import Optimized
from presto_models.ditto.solver import optimize
from presto_models.outputs import DTYPES, audio_path, check_finite, check_writable, numbered, within_full_scale
from presto_models.pipeline import PrestoPipeline
from presto_models.plots import check_plot_path

Options = TypeVar("Options", bound=ControlOptions)


@dataclass(frozen=True, eq=False)
class Piece:
    """A finished piece ``[channels, samples]`` of one candidate, and what is shown of it beside the controls."""

    audio: Tensor
    pictures: tuple[Picture, ...] = ()


def as_generated(audio: Tensor) -> Piece:
    """What was generated is the piece."""
    return Piece(audio)


@dataclass(frozen=True, eq=False)
class Task:
    """What a command asks for: its control, how much is generated, and how what was generated
    ``[channels, samples]``, as loud as the model made it, becomes the finished piece."""

    control: Control
    seconds: float
    finish: Callable[[Tensor], Piece] = as_generated


def run_control(options: Options, task: Callable[[Options, PrestoPipeline], Task], *, name: str) -> int:
    """Optimises, writes and says what was done; the exit status.

    Args:
        task: what this command asks of a pipeline.
        name: of the command.

    Raises:
        ValueError, TypeError, ArithmeticError, OSError, ImportError: what a person can act on; before the first step
            where that can be known, and never with half a file left behind.
    """
    files = _files(options)
    from rich.console import Console

    from presto_models.text import parse_tags

    tags = parse_tags(options.tags) or None
    ditto = options.ditto()
    check_also(options)
    started = time.perf_counter()
    with Console(stderr=True).status(f"loading {options.checkpoint} ..."):
        dtype = None if options.dtype is None else DTYPES[options.dtype]
        pipeline = PrestoPipeline.from_pretrained(options.checkpoint, device=options.device, dtype=dtype)
    wanted = task(options, pipeline)
    loaded = time.perf_counter()
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        made = optimize(
            pipeline,
            [wanted.control, *also_controls(options, pipeline)],
            prompt=options.prompt,
            seconds=wanted.seconds,
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
        waveform = made.waveform.cpu()
    took = time.perf_counter() - loaded
    for note in notes:
        print(f"note: {note.message}", file=sys.stderr)
    check_finite(waveform)
    order = best_first(made)
    pieces = [wanted.finish(waveform[index]) for index in order]
    _write(options, name, made, order, pieces, files)
    said = _values(options, pipeline, made, order, files, name=name, load=loaded - started, took=took)
    print(json.dumps(said) if options.json else _sentences(said))
    return 0


def best_first(made: Optimized) -> list[int]:
    """The samples by falling quality: by the weighted sum of the errors of the finished music."""
    weighted = torch.stack([outcome.weight * outcome.error for outcome in made.outcomes.values()])
    return weighted.sum(0).argsort(stable=True).tolist()


@dataclass(frozen=True)
class Files:
    """Where everything goes, one for each candidate; ``plots`` or ``parts`` is empty where none are wanted."""

    pieces: list[Path]
    plots: list[Path]
    parts: list[Path]


def _files(options: ControlOptions) -> Files:
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
    return Files(pieces, plots, parts)


def _write(
    options: ControlOptions, name: str, made: Optimized, order: Sequence[int], pieces: Sequence[Piece], files: Files
) -> None:
    from presto_models.data.audio_files import write_audio

    for place, index in enumerate(order):
        piece, path = pieces[place], files.pieces[place]
        write_audio(path, within_full_scale(piece.audio, path), made.sample_rate)
        if files.parts:
            part = files.parts[place]
            write_audio(part, within_full_scale(made.waveform[index].cpu(), part), made.sample_rate)
        if files.plots:
            title = f"{name}: {options.prompt}  (seed {made.seeds[index]})"
            plot_optimized(made, files.plots[place], index=index, title=title, pictures=piece.pictures)


def _values(
    options: ControlOptions,
    pipeline: PrestoPipeline,
    made: Optimized,
    order: Sequence[int],
    files: Files,
    *,
    name: str,
    load: float,
    took: float,
) -> dict[str, Any]:
    """Everything there is to say, lists by candidate with the best first."""

    def sorted_(values: Sequence[Any] | Tensor) -> list[Any]:
        values = values.tolist() if isinstance(values, Tensor) else values
        return [values[index] for index in order]

    ditto = options.ditto().completed(pipeline)
    return {
        "command": name,
        "files": [str(path) for path in files.pieces],
        "plots": [str(path) for path in files.plots],
        "parts": [str(path) for path in files.parts],
        "save": None if options.save is None else str(options.save),
        "seeds": sorted_(made.seeds),
        "controls": {
            control: {
                "error": sorted_(outcome.error),
                "before": sorted_(outcome.before),
                "threshold": outcome.threshold,
                "drift": None if ditto.surrogate_steps is None else sorted_(outcome.drift),
                "figures": {figure: sorted_(value) for figure, value in outcome.figures.items()},
            }
            for control, outcome in made.outcomes.items()
        },
        "steps": made.steps,
        "steps_to_threshold": sorted_(made.steps_to_threshold),
        "seconds_per_step": made.seconds_per_step,
        "model_calls": made.model_calls,
        "sampler": ditto.sampler,
        "sampling_steps": ditto.sampling_steps,
        "surrogate_steps": ditto.surrogate_steps,
        "seconds": made.waveform.shape[-1] / made.sample_rate,
        "sample_rate": made.sample_rate,
        "load_s": round(load, 4),
        "took_s": round(took, 4),
        "checkpoint": options.checkpoint,
        "device": str(pipeline.device),
        "dtype": str(next(pipeline.dit.parameters()).dtype).removeprefix("torch."),
    }


def _sentences(said: dict[str, Any]) -> str:
    lines = []
    for place, path in enumerate(said["files"]):
        of = f"{Path(path).name}: " if len(said["files"]) > 1 else ""
        for name, values in said["controls"].items():
            line = f"{of}{name}: error {values['before'][place]:.4g} before, {values['error'][place]:.4g} after"
            line += "".join(f", {figure} {value[place]:.3g}" for figure, value in values["figures"].items())
            if values["drift"] is not None:
                line += f"; drift of the surrogate {values['drift'][place]:.3g}"
            lines.append(line)
    per_step = "" if said["seconds_per_step"] is None else f" of {said['seconds_per_step']:.2f} s"
    reached = [step for step in said["steps_to_threshold"] if step is not None]
    threshold = f", threshold reached after {', '.join(map(str, reached))}" if reached else ""
    method = "DITTO" if said["surrogate_steps"] is None else f"DITTO-2 through {said['surrogate_steps']} of"
    lines.append(
        f"{said['steps']} steps{per_step}{threshold}; {method} {said['sampling_steps']} sampler steps "
        f"({said['sampler']}); {said['seconds']:.1f} s of music in {said['took_s']:.1f} s "
        f"({said['dtype']} on {said['device']})"
    )
    paths = [*said["files"], *said["parts"], *said["plots"], *([said["save"]] if said["save"] else [])]
    lines.append(f"{', '.join(paths)} (seed {', '.join(map(str, said['seeds']))})")
    return "\n".join(lines)
