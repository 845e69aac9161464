"""The pictures of `python -m bench ditto`."""

from __future__ import annotations

import numpy as np

from bench import figures, show
from bench.ditto_memory import CHECKPOINTED, KEPT
from bench.ditto_tasks import DITTO, DITTO_2
from bench.results import Report

COLOURS = {CHECKPOINTED: "tab:blue", KEPT: "tab:orange", DITTO: "tab:orange", DITTO_2: "tab:blue"}
NAMES = {DITTO: "DITTO", DITTO_2: "DITTO-2"}
LABELS = {CHECKPOINTED: "one checkpoint a call", KEPT: "every activation kept"}


def draw_curve(report: Report, path: str) -> None:
    """Bytes that the walk keeps for its backward pass, and the process's peak, against the walk's steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for variant, label in LABELS.items():
        rows = [row for row in report.rows if row["variant"] == variant]
        steps = [row["value"] for row in rows]
        for panel, name in zip(panels, ("walk_bytes", "peak_bytes"), strict=True):
            panel.plot(steps, [row[name] / 1e6 for row in rows], "o-", color=COLOURS[variant], label=label)
    rows = [row for row in report.rows if row["variant"] == CHECKPOINTED]
    line = [row["line_bytes"] / 1e6 for row in rows]
    panels[0].plot([row["value"] for row in rows], line, "k:", label="one model backward + T latents")
    titles = ("kept for the walk's backward pass, counted", "peak of a step, decoder included")
    ticks = sorted({row["value"] for row in report.rows})
    for panel, title in zip(panels, titles, strict=True):
        panel.set(xscale="log", yscale="log", xlabel="T, steps of the walk", ylabel="MB", title=title)
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.xaxis.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend()
    settings = report.meta["settings"]
    figure.suptitle(
        f"{settings['config'] or settings['checkpoint']}, {settings['audio']:g} s, {settings['dtype']}",
        fontsize="medium",
    )
    figures.save(figure, path)


def draw_race(report: Report, path: str) -> None:
    """Error of the music against the time to have it, every run."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    named: set[str] = set()
    for row in report.rows:
        method = row["method"]
        seconds = (row["start_ms"] + row["finish_ms"] + np.cumsum([0, *row["samples_ms"]])) / 1e3
        heard = [(at, error) for at, error in zip(seconds, row["errors"], strict=True) if error is not None]
        label = None if method in named else NAMES[method]
        axes.plot(*zip(*heard, strict=True), color=COLOURS[method], alpha=0.7, label=label)
        named.add(method)
    axes.set(xscale="log", yscale="log", xlabel="seconds until the music is there", ylabel="error of the music, dB²")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    last = report.summary["race"]["levels"][-1]
    arrived = f"DITTO-2 arrives {show.ratio(last, 'ditto_over_ditto2')} sooner"
    if last["ditto_over_ditto2"] == 0:
        arrived = "DITTO-2 does not arrive in most runs"
    axes.set_title(f"a crescendo, to {show.number(last['level'])} dB²: {arrived}", fontsize="medium")
    figures.save(figure, path)
