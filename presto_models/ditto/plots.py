"""Pictures of an optimisation: what was asked for and what was obtained over each other, and the error by step."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from presto_models.ditto.control import Span
from presto_models.ditto.result import Optimized, Outcome
from presto_models.files import written_beside
from presto_models.plots import check_plot_path, draw_mel

PITCHES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
WIDTH = 10.0  # inches


@dataclass(frozen=True, eq=False)
class Picture:
    """Audio ``[samples]`` to be shown as a mel spectrogram; ``seams`` and ``overlaps`` in seconds are marked in it."""

    title: str
    audio: Tensor
    seams: tuple[float, ...] = ()
    overlaps: tuple[Span, ...] = ()


def plot_optimized(
    made: Optimized,
    path: str | os.PathLike[str],
    *,
    index: int = 0,
    title: str = "",
    pictures: Sequence[Picture] = (),
) -> Path:
    """Sample ``index`` of a result to a picture file.

    From above: ``pictures``; for every control of loudness, melody or structure what was asked for and what was
    obtained; the error of every control before each step, its threshold, and the error of the finished music.

    Args:
        path: ends in one of :data:`presto_models.plots.FORMATS`; written beside and renamed.
    """
    path = check_plot_path(path)
    if not 0 <= index < len(made.seeds):
        raise ValueError(f"index must be a sample's, from 0 to {len(made.seeds) - 1}, got {index}")
    from matplotlib.figure import Figure

    seconds = made.waveform.shape[-1] / made.sample_rate
    rows: list[tuple[float, Callable[[Any], None]]] = [
        (2.4, partial(_draw_picture, picture=picture, sample_rate=made.sample_rate)) for picture in pictures
    ]
    for name, outcome in made.outcomes.items():
        if outcome.kind in _DRAWN:
            height, draw = _DRAWN[outcome.kind]
            rows.append((height, partial(draw, name=name, outcome=outcome, index=index, seconds=seconds)))
    rows.append((2.4, partial(_draw_errors, made=made, index=index)))
    heights = [height for height, _ in rows]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.3), layout="constrained")
    figure.suptitle(title.replace("$", r"\$"), fontweight="bold")  # no mathematics in a prompt
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (_, draw_row) in zip(parts, rows, strict=True):
        draw_row(part)
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=100)
    return path


def _draw_picture(part: Any, picture: Picture, sample_rate: int) -> None:
    axes = part.subplots()
    ticks = (250, 1000, 2000, 4000, 8000, 16000)
    shown = draw_mel(axes, picture.audio.detach().float().cpu(), sample_rate, ticks=ticks)
    for i, (start, stop) in enumerate(picture.overlaps):
        axes.axvspan(start, stop, color="white", alpha=0.25, label=None if i else "overlap")
    for i, seam in enumerate(picture.seams):
        axes.axvline(seam, color="cyan", linestyle="--", linewidth=1.2, label=None if i else "seam")
    if picture.seams or picture.overlaps:
        axes.legend(loc="upper right", fontsize="small")
    axes.set(xlabel="seconds")
    axes.set_title(picture.title, fontsize="medium")
    part.colorbar(shown, ax=axes, label="dB below the loudest", pad=0.01)


def _draw_loudness(part: Any, name: str, outcome: Outcome, index: int, seconds: float) -> None:
    axes = part.subplots()
    times = torch.linspace(0, seconds, len(outcome.target))
    axes.plot(times, outcome.uncontrolled[index], color="tab:gray", linewidth=1, label="without control")
    axes.plot(times, outcome.obtained[index], color="tab:blue", label="obtained")
    axes.plot(times, outcome.target, color="tab:red", linestyle="--", label="asked for")
    axes.set(xlabel="seconds", ylabel="dB", xlim=(0, seconds))
    axes.set_title(_said(name, outcome, index), fontsize="medium")
    axes.legend(loc="best", fontsize="small")
    axes.grid(alpha=0.3)


def _draw_melody(part: Any, name: str, outcome: Outcome, index: int, seconds: float) -> None:
    axes = part.subplots()
    shown = axes.imshow(
        outcome.obtained[index].exp().T.numpy(),  # it is a log
        origin="lower",
        aspect="auto",
        extent=(0.0, seconds, -0.5, 11.5),
        cmap="magma",
        interpolation="nearest",
    )
    # One line for each note as long as it lasts; a frame that is not counted has a row of zeros.
    classes = torch.where(outcome.target.sum(1) > 0, outcome.target.argmax(1).float(), float("nan"))
    edges = torch.linspace(0, seconds, len(classes) + 1)
    axes.stairs(classes.numpy(), edges.numpy(), baseline=None, color="cyan", linewidth=2, label="asked for")
    axes.set_yticks(range(12), PITCHES, fontsize="small")
    axes.set(xlabel="seconds", ylabel="pitch class")
    axes.set_title(_said(name, outcome, index), fontsize="medium")
    axes.legend(loc="upper right", fontsize="small")
    part.colorbar(shown, ax=axes, label="share of the energy", pad=0.01)


def _draw_structure(part: Any, name: str, outcome: Outcome, index: int, seconds: float) -> None:
    matrices = {
        "asked for": outcome.target,
        _said("obtained", outcome, index): outcome.obtained[index],
        "without control": outcome.uncontrolled[index],
    }
    low = min(float(matrix.min()) for matrix in matrices.values())
    high = max(float(matrix.max()) for matrix in matrices.values())
    each = part.subplots(1, len(matrices), sharey=True)
    for axes, (title, matrix) in zip(each, matrices.items(), strict=True):
        shown = axes.imshow(
            matrix.numpy(), origin="lower", extent=(0.0, seconds) * 2, vmin=low, vmax=high, interpolation="nearest"
        )
        axes.set_title(title, fontsize="medium")
        axes.set(xlabel="seconds")
    each[0].set(ylabel="seconds")
    part.colorbar(shown, ax=list(each), label="similarity", pad=0.01)


# kind of control: (inches, how it is drawn)
_DRAWN: dict[str, tuple[float, Callable[..., None]]] = {
    "loudness": (2.6, _draw_loudness),
    "melody": (2.6, _draw_melody),
    "structure": (3.4, _draw_structure),
}


def _draw_errors(part: Any, made: Optimized, index: int) -> None:
    axes = part.subplots()
    values = []
    for number, (name, outcome) in enumerate(made.outcomes.items()):
        colour, history = f"C{number}", outcome.history[:, index]
        axes.plot(range(len(history)), history, color=colour, label=name)
        axes.plot(len(history), outcome.error[index], "o", color=colour, label=f"{name}, finished")
        if outcome.threshold is not None:
            axes.axhline(outcome.threshold, color=colour, linestyle=":", label=f"{name}, threshold")
        values += [*history.tolist(), float(outcome.error[index])]
    if all(value > 0 for value in values):
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="error")
    axes.set_title("error before each step", fontsize="medium")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="best", fontsize="small")
    axes.grid(alpha=0.3, which="both")


def _said(name: str, outcome: Outcome, index: int) -> str:
    figures = {"error": outcome.error, **outcome.figures}
    return f"{name}: " + ", ".join(f"{what} {float(value[index]):.3g}" for what, value in figures.items())
