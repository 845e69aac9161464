"""A picture of the table of ways to control: a panel a task, error against seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from presto_models.files import written_beside
from presto_models.plots import check_plot_path


def draw_control(result: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Median error against median seconds, both logarithmic, a line for a search and a dot for the music of each row, a
    triangle at the lower edge where it has no error at all; dashed, the threshold."""
    path = check_plot_path(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    rows = [entry for entry in result["rows"] if entry["runs"]]
    tasks = list(dict.fromkeys(entry["task"] for entry in rows))
    names = list(dict.fromkeys(entry["name"] for entry in rows))
    wide = max(1, min(3, len(tasks)))
    figure = Figure(figsize=(4.6 * wide, 3.6 * -(-len(tasks) // wide) + 0.8), layout="constrained")
    panels = figure.subplots(-(-len(tasks) // wide) or 1, wide, squeeze=False).flatten()
    for panel, task in zip(panels, tasks, strict=False):
        of_task = [entry for entry in rows if entry["task"] == task]
        least = min((entry["end"][1] for entry in of_task if entry["end"][1] > 0), default=1.0)
        for entry in of_task:
            index = names.index(entry["name"])
            color, (seconds, error) = f"C{index % 10}", entry["end"]
            if entry["path"]:
                panel.plot(*zip(*entry["path"], strict=True), color=color, linewidth=1.2)
            if error > 0:
                panel.plot(seconds, error, "os"[index >= 10], color=color)
            else:  # below the scale
                panel.plot(seconds, least / 3, "v", color=color)
                panel.annotate("0", (seconds, least / 3), xytext=(5, -3), textcoords="offset points", fontsize=8)
        if (threshold := of_task[0]["threshold"]) is not None:
            panel.axhline(threshold, color="grey", linestyle="--", linewidth=1, zorder=0)
        panel.set(
            title=task, xlabel="seconds", ylabel=f"median error, {of_task[0]['unit']}", xscale="log", yscale="log"
        )
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
    for panel in panels[len(tasks) :]:
        panel.remove()
    handles = [
        panels[0].plot([], [], "os"[index >= 10], color=f"C{index % 10}", label=name)[0]
        for index, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, max(1, len(names))), fontsize="small")
    with written_beside(Path(path)) as beside:
        figure.savefig(beside, dpi=120)
