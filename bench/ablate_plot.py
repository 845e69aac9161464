"""The bars of `python -m bench ablate`."""

from __future__ import annotations

import numpy as np

from bench import figures, show
from bench.ablations import ABLATIONS, ALL_OFF
from bench.results import Report


def draw(report: Report, path: str) -> None:
    """What each optimisation saves of one generation, with 95 % intervals, the largest on top.

    Plain PyTorch is told in the title: it would make the other bars short.
    """
    from matplotlib.figure import Figure

    saved = {name: gain for name, gain in report.summary["saved"].items() if name != ALL_OFF}
    order = sorted(saved, key=lambda name: saved[name]["ms"])
    medians = np.array([saved[name]["ms"] for name in order])
    errors = np.abs(np.array([saved[name]["ms_interval"] for name in order]).reshape(-1, 2).T - medians)
    figure = Figure(figsize=(7.5, 1.4 + 0.42 * len(order)), layout="constrained")
    axes = figure.subplots()
    colours = ["tab:blue" if ABLATIONS[name].lossless else "tab:orange" for name in order]
    axes.barh([f"{name}" for name in order], medians, xerr=errors, color=colours, capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel="ms saved of a generation (orange: the result is another one)")
    settings, on = report.meta["settings"], report.summary["all_on_ms"]["total"]
    title = f"{settings['checkpoint'] or settings['config']}, {settings['dtype']}, {report.meta['device']}\n"
    title += f"everything on {show.number(on)} ms"
    if ALL_OFF in report.summary["saved"]:
        title += f"; plain PyTorch takes {show.number(report.summary['saved'][ALL_OFF]['ms'])} ms more"
    axes.set_title(title, fontsize="medium")
    figures.save(figure, path)
