"""What people see of a table of methods: a table in a page, a figure, and a table on the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from presto_models.files import written_beside
from presto_models.metrics.pages import fill_page

MARK = "<!-- methods -->"
_TITLES = {
    "test": "real, test",
    "validation": "real, validation (floor)",
    "reconstruction": "reconstruction",
    "noise": "noise (ceiling)",
}
Entry = dict[str, Any]


def fill(text: str, result: dict[str, Any]) -> str:
    """The page with the table as it is now."""
    return fill_page(text, MARK, markdown(result))


def _interval(interval: dict[str, float] | None, digits: int = 3) -> str:
    if interval is None:
        return ""
    value, low, high = (f"{interval[name]:.{digits}g}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _thousandths(interval: dict[str, float] | None) -> str:
    if interval is None:
        return ""
    value, low, high = (f"{1e3 * interval[name]:.0f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _heard(entry: Entry) -> str:
    shares = [found.get("accuracy", {}).get("value") for found in (entry.get("agreement") or {}).values()]
    return " / ".join("–" if share is None else f"{share:.2f}" for share in shares)


def _calls(entry: Entry) -> str:
    network = entry.get("network")
    if network is None:
        return ""
    calls, evaluations = network["calls"], network["evaluations"]
    return str(calls) if calls == evaluations else f"{calls} ({evaluations})"


def _blocks(entry: Entry) -> str:
    network = entry.get("network")
    return f"{network['blocks']}/{network['of_blocks']}" if network else ""


def _milliseconds(entry: Entry, part: str) -> str:
    value = entry.get("time", {}).get(part)
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _diversity(entry: Entry) -> str:
    """Without its interval, for which the terminal is too narrow."""
    return _share((entry.get("diversity") or {}).get("value"))


QUALITY: dict[str, Callable[[Entry], str]] = {
    "FAD": lambda entry: _interval(entry.get("fad")),
    "MMD² · 10³": lambda entry: _thousandths(entry.get("mmd")),
    "density": lambda entry: _share(entry.get("density")),
    "recall": lambda entry: _share(entry.get("recall")),
    "coverage": lambda entry: _share(entry.get("coverage")),
    "tags heard": _heard,
    "diversity": lambda entry: _interval(entry.get("diversity"), 2),
}
COST: dict[str, Callable[[Entry], str]] = {
    "calls": _calls,
    "blocks": _blocks,
    "ms": lambda entry: _milliseconds(entry, "pipeline_ms"),
    "ms, steps": lambda entry: _milliseconds(entry, "steps_ms"),
    "speed-up": lambda entry: _interval(entry.get("time", {}).get("speedup")),
}


def _titled(result: dict[str, Any]) -> list[tuple[str, Entry]]:
    return [(_TITLES[entry["name"]], entry) for entry in result["references"]["rows"]] + [
        (entry["name"], entry) for entry in result["rows"]
    ]


def _groups(result: dict[str, Any]) -> list[tuple[str, list[tuple[str, Entry]]]]:
    """Rows by group, in the order in which the groups come first; references have none."""
    groups: dict[str, list[tuple[str, Entry]]] = {}
    for title, entry in _titled(result):
        groups.setdefault(entry.get("group", ""), []).append((title, entry))
    return list(groups.items())


def markdown(result: dict[str, Any]) -> str:
    """The table, a line about how it was made, and the rows' notes."""
    columns = QUALITY | COST
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for group, entries in _groups(result):
        if group:
            lines.append(f"| **{group}** |{' |' * len(columns)}")
        for title, entry in entries:
            cells = [column(entry) for column in columns.values()]
            if "left_out" in entry:
                cells = [f"left out: {entry['left_out']}".replace("|", "\\|"), *[""] * (len(columns) - 1)]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    noted = [f"- {entry['name']}: {entry['note']}" for entry in result["rows"] if entry.get("note")]
    return "\n".join([*lines, "", _made(result["meta"]), *(["", *noted] if noted else [])])


def _made(meta: dict[str, Any]) -> str:
    tags = f" Tags heard: {' / '.join(meta['tags'])}." if meta["tags"] else ""
    return (
        f"{meta['clips']} clips of {meta['seconds']:g} s a row from {meta['pieces']['test']} test pieces, seed "
        f"{meta['seed']}; diversity over {meta['seeds']} seeds of {meta['prompts']} prompts; 95 % intervals from "
        f"{meta['resamples']} resamples.{tags} {meta['device']}, torch {meta['torch']} (`{meta['command']}`)."
    )


def show_methods(result: dict[str, Any]) -> None:
    """Two tables, of quality and of cost, that fit 100 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=100, highlight=False)
    meta = result["meta"]
    titles = (f"{meta['clips']} clips of {meta['seconds']:g} s against real music, 95 % intervals", "Cost of one piece")
    for title, columns in zip(titles, (QUALITY | {"diversity": _diversity}, COST), strict=True):
        made = Table(
            title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False, padding=(0, 1, 0, 0)
        )
        made.add_column("", min_width=12, overflow="fold")
        for name in columns:
            made.add_column(name, justify="right", no_wrap=True)
        for name, entry in _titled(result):
            if "left_out" not in entry and (columns is not COST or "network" in entry):
                made.add_row(name, *(column(entry) for column in columns.values()))
        console.print(made)
    for entry in result["rows"]:
        if "left_out" in entry:
            console.print(f"{entry['name']}: left out: {entry['left_out']}", markup=False)


def draw_methods(result: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """A figure: FAD with its interval against the milliseconds of a piece, a point a row."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator
    except ImportError as error:
        raise ImportError("a figure needs matplotlib: pip install 'presto-kernels[models]'") from error

    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    timed = [entry for entry in result["rows"] if "left_out" not in entry and "time" in entry]
    for number, group in enumerate(dict.fromkeys(entry["group"] for entry in timed)):
        of_group = [entry for entry in timed if entry["group"] == group]
        values = [entry["fad"]["value"] for entry in of_group]
        times = [entry["time"]["pipeline_ms"] for entry in of_group]
        # A quantile can lie on the near side of the value by rounding; a bar's length cannot be negative.
        below = [max(0.0, entry["fad"]["value"] - entry["fad"]["low"]) for entry in of_group]
        above = [max(0.0, entry["fad"]["high"] - entry["fad"]["value"]) for entry in of_group]
        panel.errorbar(times, values, yerr=[below, above], fmt="o", capsize=3, color=f"C{number}", label=group)
        for entry, x in zip(of_group, times, strict=True):
            # Slanting up from the bar's end: methods of one kind lie close together.
            at = (x, entry["fad"]["high"])
            panel.annotate(entry["name"], at, xytext=(-2, 4), textcoords="offset points", fontsize=8, rotation=55)
    for entry in result["references"]["rows"]:
        if entry["name"] in ("validation", "reconstruction"):
            panel.axhline(entry["fad"]["value"], color="grey", linestyle="--", linewidth=1, zorder=0)
            at = (0.99, entry["fad"]["value"])
            panel.annotate(_TITLES[entry["name"]], at, xycoords=("axes fraction", "data"), ha="right", fontsize=8)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.margins(x=0.12)  # room for the names
    panel.set_xlabel(f"milliseconds from prompt to {result['meta']['seconds']:g} s of music")
    panel.set_ylabel("FAD to real test music, 95 % intervals")
    if any(entry["group"] for entry in timed):
        panel.legend()
    with written_beside(Path(path)) as beside:
        figure.savefig(beside, dpi=120)
