"""A picture of the table of ways to control: a panel a task, error against seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from presto_models.files import written_beside
from presto_models.plots import check_plot_path


def draw_control(result: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Median error against median seconds, both logarithmic, a line for a search and a dot for the music of each row;
    dashed, the threshold."""
    path = check_plot_path(path)
    from matplotlib.figure import Figure

    rows = [entry for entry in result["rows"] if entry["runs"]]
    tasks = list(dict.fromkeys(entry["task"] for entry in rows))
    names = list(dict.fromkeys(entry["name"] for entry in rows))
    wide = max(1, min(3, len(tasks)))
    figure = Figure(figsize=(4.6 * wide, 3.6 * -(-len(tasks) // wide) + 0.8), layout="constrained")
    panels = figure.subplots(-(-len(tasks) // wide) or 1, wide, squeeze=False).flatten()
    for panel, task in zip(panels, tasks, strict=False):
        of_task = [entry for entry in rows if entry["task"] == task]
        for entry in of_task:
            color = f"C{names.index(entry['name']) % 10}"
            marker = "o" if names.index(entry["name"]) < 10 else "s"
            if entry["path"]:
                panel.plot(*zip(*entry["path"], strict=True), color=color, linewidth=1.2)
            panel.plot(*entry["end"], marker, color=color)
        if (threshold := of_task[0]["threshold"]) is not None:
            panel.axhline(threshold, color="grey", linestyle="--", linewidth=1, zorder=0)
        panel.set(title=task, xscale="log", xlabel="seconds", ylabel=f"median error, {of_task[0]['unit']}")
        if all(entry["end"][1] > 0 for entry in of_task):
            panel.set_yscale("log")
    for panel in panels[len(tasks) :]:
        panel.remove()
    handles = [
        figure.axes[0].plot([], [], "o" if index < 10 else "s", color=f"C{index % 10}", label=name)[0]
        for index, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, max(1, len(names))), fontsize="small")
    with written_beside(Path(path)) as beside:
        figure.savefig(beside, dpi=120)
