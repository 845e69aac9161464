"""What people see of `distill inspect`: a figure and a table."""

from __future__ import annotations

import os
from math import nan
from statistics import median
from typing import Any

from presto_models.files import written_beside

_COLOURS = {"full": "black", "ASE": "#c44e52", "Presto-L": "#4c72b0"}


def draw(result: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """A figure of what :func:`presto_models.distill.inspect.measure` returned.

    Above, a panel a model: the standard deviation behind each block that runs, a line a noise level; below, that of
    what the final layer reads against the noise, and how large it is beside the full model's.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    sigmas, walk, models = result["sigmas"], set(result["walk"]), result["models"]
    outputs, ratios, top = _outputs(result), _ratios(result), _top(result)
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.1, 1), squeeze=False)[:, 0]
    norm, colours = LogNorm(sigmas[0], sigmas[-1]), colormaps["viridis"]
    panels = above.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for panel, (name, model) in zip(panels, models.items(), strict=True):
        for sigma, blocks, spread in zip(sigmas, model["blocks"], model["std"], strict=True):
            # What the four-step walk meets is thicker.
            width = 2.0 if sigma in walk else 0.9
            panel.plot(blocks, spread, ".-", color=colours(norm(sigma)), linewidth=width, markersize=5)
            panel.plot(blocks[-1], spread[-1], "o", color=colours(norm(sigma)), markersize=8)
        panel.set(title=name, xlabel="block", xticks=range(result["num_blocks"]), ylim=(0, top))
        panel.grid(alpha=0.3)
        over = [f"σ {s:.3g}: {v:.3g}" for s, v in zip(sigmas, outputs[name], strict=True) if v > top]
        if over:
            panel.text(0.02, 0.97, "\n".join(("off the scale at the last", *over)), va="top", transform=panel.transAxes)
    panels[0].set_ylabel("standard deviation of the hidden state")
    bar = above.colorbar(ScalarMappable(norm, colours), ax=list(panels), pad=0.01)
    bar.set_label("noise level σ (thick: a four-step walk's)")
    left, right = below.subplots(1, 2)
    for name, output in outputs.items():
        for panel, values in ((left, output), (right, ratios[name])):
            shown = [value if panel is right or value <= top else nan for value in values]
            panel.plot(sigmas, shown, ".-", color=_COLOURS[name], label=name)
            at = [(s, v) for s, v in zip(sigmas, values, strict=True) if s in walk]
            panel.plot(*zip(*at, strict=True), "o", color=_COLOURS[name], markersize=8)
    left.set(xlabel="noise level σ", xscale="log", ylim=(0, top), title="What the final layer reads")
    left.set_ylabel("standard deviation")
    right.set(xlabel="noise level σ", xscale="log", ylim=(0, None), title="... beside the full model's", ylabel="ratio")
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.legend()
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=120)


def show(result: dict[str, Any]) -> None:
    """Prints what the final layer reads at every noise level."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    students = [name for name in result["models"] if name != "full"]
    made = Table(
        title=f"Standard deviation of the hidden state that the final layer reads, {result['num_blocks']} blocks",
        caption="σ marked *: a four-step walk's; × full: beside the full model's",
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    columns = ["σ", "", "full", *(part for name in students for part in (name, "× full", "blocks"))]
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 1 else "right", no_wrap=True)
    outputs, ratios = _outputs(result), _ratios(result)
    for index, sigma in enumerate(result["sigmas"]):
        row = [f"{sigma:.3g}", "*" if sigma in result["walk"] else "", f"{outputs['full'][index]:.3g}"]
        for name in students:
            blocks = len(result["models"][name]["blocks"][index])
            row += [f"{outputs[name][index]:.3g}", f"{ratios[name][index]:.2f}", str(blocks)]
        made.add_row(*row)
    Console(width=100, highlight=False).print(made)


def _top(result: dict[str, Any]) -> float:
    """Where the scale ends.  A noise level that training never met can have states hundreds of times as large as the
    others'; it is left out and named, so that the others can be told apart."""
    values = [value for model in result["models"].values() for spread in model["std"] for value in spread]
    return 1.08 * min(max(values), 2 * median(_outputs(result)["full"]))


def _outputs(result: dict[str, Any]) -> dict[str, list[float]]:
    """Behind the last block that runs, at every noise level."""
    return {name: [spread[-1] for spread in model["std"]] for name, model in result["models"].items()}


def _ratios(result: dict[str, Any]) -> dict[str, list[float]]:
    outputs = _outputs(result)
    return {name: [a / b for a, b in zip(own, outputs["full"], strict=True)] for name, own in outputs.items()}
