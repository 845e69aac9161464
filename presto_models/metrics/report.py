"""What people see of an evaluation: progress, tables and a figure."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from presto_models.files import written_beside

T = TypeVar("T")
_SETS = {
    "validation": "real, validation (floor)",
    "reconstruction": "reconstructed",
    "generated": "generated",
    "noise": "noise of the same spectrum (ceiling)",
}
_MEASURES = {"fad": "FAD", "mmd": "MMD²", "kid": "KID"}


def shown(items: Iterable[T], label: str, total: int) -> Iterable[T]:
    """The items, with a bar that goes away; nothing where there is no terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console()
    return track(items, label, total, transient=True, console=console, disable=not console.is_terminal)


def show(result: dict[str, Any]) -> None:
    """Prints the tables of what :func:`presto_models.metrics.evaluate.measure` returned."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)

    def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
        made = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
        for index, column in enumerate(columns):
            made.add_column(column, justify="right" if index else "left")
        for row in rows:
            made.add_row(*row)
        console.print(made)

    distances, coverage = result["distances"], result["coverage"]
    clips, seconds = result["options"]["clips"], result["options"]["seconds"]
    table(
        f"Distance from the test split: {clips} clips of {seconds:g} s each, 95 % intervals",
        ["", *(_MEASURES[measure] for measure in distances), "density", "coverage"],
        [
            [
                title,
                *(_interval(found["to_reference"][name]) for found in distances.values()),
                f"{coverage[name]['density']:.2f}",
                f"{coverage[name]['coverage']:.2f}",
            ]
            for name, title in _SETS.items()
        ],
    )
    for measure, found in distances.items():
        verdict = "within" if found["within_goal"] else "NOT within"
        console.print(
            f"{_MEASURES[measure]}: generated lies {_interval(found['ratio'])} of the way from real music to noise, "
            f"{verdict} the goal of {found['goal']:g}"
        )
    units = {"si_sdr": ("SI-SDR", "dB"), "stft": ("STFT distance", ""), "mel": ("mel distance", "dB")}
    units["log_spectral"] = ("log-spectral distance", "dB")
    table(
        "Reconstructions from their originals",
        ["", "mean"],
        [[units[name][0], f"{_interval(value)} {units[name][1]}"] for name, value in result["reconstruction"].items()],
    )
    for tag, of_sets in result["agreement"].items():
        if "left_out" in of_sets:
            console.print(f"{tag}: {of_sets['left_out']}")
            continue
        table(
            f"Is the {tag} asked for heard?",
            ["", "accuracy", "always the commonest", "balanced", "by chance", "p"],
            [
                [
                    name,
                    _interval(found["accuracy"]),
                    f"{found['chance']:.2f}",
                    f"{found['balanced_accuracy']:.2f}",
                    f"{found['balanced_chance']:.2f}",
                    f"{found['p_value']:.4f}",
                ]
                for name, found in of_sets.items()
            ],
        )


def draw(result: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """A figure: the distances with their intervals and the goal, and the agreement of tags with chance."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a figure needs matplotlib: pip install 'presto-kernels[models]'") from error

    measures = list(result["distances"].items())
    agreements = {tag: found for tag, found in result["agreement"].items() if "left_out" not in found}
    figure = Figure(figsize=(4 * (len(measures) + len(agreements)), 4), layout="constrained")
    panels = figure.subplots(1, len(measures) + len(agreements), squeeze=False)[0]
    for panel, (measure, found) in zip(panels, measures, strict=False):
        at = found["to_reference"]
        _bars(panel, {name: at[name] for name in _SETS})
        floor, ceiling = at["validation"]["value"], at["noise"]["value"]
        panel.axhline(floor + found["goal"] * (ceiling - floor), color="black", linestyle="--", linewidth=1)
        panel.set_title(f"{_MEASURES[measure]} to test music (dashed: goal)")
    for panel, (tag, of_sets) in zip(panels[len(measures) :], agreements.items(), strict=True):
        _bars(panel, {name: found["accuracy"] for name, found in of_sets.items()})
        panel.axhline(max(found["chance"] for found in of_sets.values()), color="black", linestyle="--", linewidth=1)
        panel.set_title(f"{tag} heard as asked (dashed: chance)")
        panel.set_ylim(0, 1)
    with written_beside(Path(path)) as beside:
        figure.savefig(beside, dpi=120)


def _bars(panel: Any, intervals: dict[str, dict[str, float]]) -> None:
    values = [interval["value"] for interval in intervals.values()]
    # A quantile can lie on the near side of the value by rounding; a bar's length cannot be negative.
    below = [max(0.0, interval["value"] - interval["low"]) for interval in intervals.values()]
    above = [max(0.0, interval["high"] - interval["value"]) for interval in intervals.values()]
    panel.bar(list(intervals), values, yerr=[below, above], capsize=4, color="#4c78a8")
    panel.tick_params(axis="x", rotation=20)


def _interval(interval: dict[str, float]) -> str:
    return f"{interval['value']:.3g} [{interval['low']:.3g}, {interval['high']:.3g}]"
