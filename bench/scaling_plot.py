"""The curves of `python -m bench scaling`: one log-log panel an axis, fitted power laws and the counted floor."""

from __future__ import annotations

import math

import numpy as np

from bench import figures
from bench.names import COMPILE, PRESTO, REFERENCE
from bench.results import Report

COLOURS = {REFERENCE: "tab:grey", COMPILE: "tab:orange", PRESTO: "tab:blue"}
LABELS = {"length": "latents", "batch": "samples", "depth": "blocks", "steps": "steps of the walk"}


def draw(report: Report, path: str) -> None:
    """Medians with their 95 % intervals, the power law through them, and what the machine's ceilings allow."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    fits = report.summary["axes"]
    columns = min(2, len(fits))
    size = (5.2 * columns + 0.6, 4.0 * math.ceil(len(fits) / columns) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(math.ceil(len(fits) / columns), columns, squeeze=False).flatten()
    for panel in panels[len(fits) :]:
        panel.set_visible(False)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    for panel, (axis, found) in zip(panels, fits.items(), strict=False):
        rows = [row for row in report.rows if row["axis"] == axis]
        values = np.array(sorted({row["value"] for row in rows}), dtype=float)
        for name in dict.fromkeys(row["implementation"] for row in rows):
            own = [row for row in rows if row["implementation"] == name]
            at, medians = np.array([row["value"] for row in own]), np.array([row["ms_p50"] for row in own])
            errors = np.abs(np.array([row["ms_p50_interval"] for row in own]).T - medians)
            colour = COLOURS.get(name)
            panel.errorbar(at, medians, errors, fmt="o", markersize=4, capsize=3, color=colour)
            if name in found:
                fit = found[name]
                low, high = fit["exponent_interval"]
                label = f"{name}: {fit['exponent']:.2f} ({low:.2f} to {high:.2f})"
                panel.plot(values, fit["coefficient"] * values ** fit["exponent"], color=colour, label=label)
        floor = {row["value"]: row["floor_ms"] for row in rows}
        label = f"counted floor: {found['floor_exponent']:.2f}"
        panel.plot(values, [floor[value] for value in values], color="black", linestyle=":", label=label)
        panel.set(xscale="log", yscale="log", xlabel=LABELS[axis], ylabel="ms", title=f"against {axis}")
        panel.set_xticks(values, [f"{value:g}" for value in values])
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.xaxis.minorticks_off()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(plain)
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_ylim(top=3 * panel.get_ylim()[1])  # room for the legend
        panel.grid(alpha=0.3)
        panel.legend(title="exponent (95 %)", fontsize="small", title_fontsize="small", loc="upper left")
    settings = report.meta["settings"]
    figure.suptitle(f"{settings['config']}, {settings['dtype']}, {report.meta['device']}", fontsize="medium")
    figures.save(figure, path)
