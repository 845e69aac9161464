"""The pictures of `python -m bench ditto`."""

from __future__ import annotations

import numpy as np

from bench import figures, show
from bench.ditto_memory import CHECKPOINTED, KEPT
from bench.ditto_tasks import DITTO, DITTO_2
from bench.results import Report

COLOURS = {CHECKPOINTED: "tab:blue", KEPT: "tab:orange", DITTO: "tab:orange", DITTO_2: "tab:blue"}
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
    figure.suptitle(f"{model(settings)}, {settings['audio']:g} s, {settings['dtype']}", fontsize="medium")
    figures.save(figure, path)


def draw_race(report: Report, path: str) -> None:
    """Error of the music against the time to have it: every run, and where they reach each level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    seen = set()
    for row in report.rows:
        method = row["method"]
        seconds = (row["start_ms"] + row["finish_ms"] + np.cumsum([0, *row["samples_ms"]])) / 1e3
        label = None if method in seen else {DITTO: "DITTO", DITTO_2: "DITTO-2"}[method]
        axes.plot(seconds, row["errors"], color=COLOURS[method], alpha=0.7, label=label)
        seen.add(method)
    axes.set(xscale="log", yscale="log", xlabel="seconds until the music is there", ylabel="error, dB²")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    ratio = show.ratio(report.summary["race"]["levels"][-1], "ditto_over_ditto2") if report.summary["race"] else None
    title = "loudness: error of the music as decoded"
    axes.set_title(title if ratio is None else f"{title}; DITTO's last error {ratio} sooner", fontsize="medium")
    figures.save(figure, path)


def model(settings: dict[str, object]) -> str:
    """What was timed."""
    return str(settings["config"] or settings["checkpoint"])
