"""Pictures of one step: a waterfall of its kinds of op, and the device's roofline with the kinds in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench import figures, show
from bench.flame import COLORS
from bench.names import GRAPH, PRESTO, REFERENCE
from bench.results import Row
from bench.roofline import Ceiling
from bench.step_rows import SUM, WHOLE

SHADES = {REFERENCE: ("#7f7f7f", "#c4c4c4"), PRESTO: ("#1b6ca8", "#9cc7e6")}
"""Side → the colour of what its floor allows, and of what is above it."""
GAP = "#e9c46a"
MARKERS = "osD^vP*Xhd"


def waterfall(path: str, rows: Sequence[Row], title: str, device_type: str) -> None:
    """Kinds by falling time, each bar beginning where the one above it ends; below them the gaps and the sum.

    Dark is what the floor allows, light what is above it.  Both sides each have a staircase of their own.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    sides = _sides(rows)
    first = next(iter(sides.values()))
    kinds = sorted((k for k in first if k not in (SUM, WHOLE)), key=lambda k: -first[k]["ms_p50"])
    gaps = "gaps between kernels" if device_type == "cuda" else "in no operator (Python)"
    labels = [*kinds, gaps, "sum"]
    figure = Figure(figsize=(9.5, 0.62 * len(labels) + 1.5), layout="constrained")
    axes = figure.subplots()
    widest = max(side[SUM]["ms_p50"] + side[SUM]["gap_ms"] for side in sides.values())
    height = 0.8 / len(sides)
    for index, (name, side) in enumerate(sides.items()):
        dark, light = SHADES[name.removesuffix(GRAPH)]
        at, offset = 0.0, (index - (len(sides) - 1) / 2) * height

        def bar(row: int, left: float, width: float, color: str, *, y: float = offset) -> None:
            axes.barh(row + y, width, height * 0.92, left=left, color=color)

        for row, kind in enumerate(kinds):
            ms = side[kind]["ms_p50"]
            floor = min(ms, side[kind]["floor_ms"])
            bar(row, at, floor, dark)
            bar(row, at + floor, ms - floor, light)
            at += ms
            _value(axes, at, row + offset, ms, widest)
        gap = side[SUM]["gap_ms"]
        bar(len(kinds), at, gap, GAP)
        _value(axes, at + gap, len(kinds) + offset, gap, widest)
        floors = min(at, side[SUM]["floor_ms"])
        bar(len(kinds) + 1, 0.0, floors, dark)
        bar(len(kinds) + 1, floors, at - floors, light)
        bar(len(kinds) + 1, at, gap, GAP)
        _value(axes, at + gap, len(kinds) + 1 + offset, at + gap, widest)
    axes.axhline(len(kinds) + 0.5, color="#000", linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set(xlabel="ms under the profiler", xlim=(0, 1.1 * widest))
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    patches = [
        Patch(color=color, label=f"{name.replace(GRAPH, ', CUDA graph')}, {what}")
        for name in sides
        for color, what in zip(SHADES[name.removesuffix(GRAPH)], ("its floor", "above its floor"), strict=True)
    ]
    axes.legend(handles=[*patches, Patch(color=GAP, label=gaps)], loc="upper right", fontsize=8)
    figures.save(figure, path)


def roofline(path: str, rows: Sequence[Row], ceiling: Ceiling, title: str) -> None:
    """TFLOP/s reached over operations a byte, both logarithmic, below what memory and products allow.

    A kind's two points, presto's filled and the reference's hollow, stand above each other: the work is the same.
    """
    from matplotlib.figure import Figure

    sides = _sides(rows)
    kinds = [kind for kind in COLORS if all(kind in side for side in sides.values())]
    figure = Figure(figsize=(9.5, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel="operations a byte (FLOP/B)", ylabel="TFLOP/s")
    points = {
        name: {k: (side[k]["flops"] / side[k]["bytes"], side[k]["tflops"]) for k in kinds if side[k]["tflops"]}
        for name, side in sides.items()
    }
    every = np.array([point for side in points.values() for point in side.values()])
    low = min(every[:, 0].min(), ceiling.ridge) / 2
    high = max(every[:, 0].max(), ceiling.ridge) * 2
    x = np.geomspace(low, high, 200)
    axes.plot(x, np.minimum(x * ceiling.copy_gbs / 1e3, ceiling.matmul_tflops), color="#222", linewidth=1.4)
    bottom = min(every[:, 1].min(), low * ceiling.copy_gbs / 1e3) / 1.6
    axes.set(xlim=(low, high * 14), ylim=(bottom, max(ceiling.matmul_tflops, every[:, 1].max()) * 2.2))
    bandwidth = f"copy {show.number(ceiling.copy_gbs)} GB/s"
    product = f"{ceiling.rate} matrix product {show.number(ceiling.matmul_tflops)} TFLOP/s"
    middle = float(np.sqrt(low * min(ceiling.ridge, high)))  # the line rises: what ends above it does not cross it
    axes.text(middle, middle * ceiling.copy_gbs / 1e3 * 1.15, f"{bandwidth} ", ha="right", fontsize=8)
    axes.text(high, ceiling.matmul_tflops * 1.12, product, ha="right", fontsize=8)
    for kind, marker in zip(kinds, MARKERS, strict=False):
        of_kind = [points[name][kind] for name in points if kind in points[name]]
        axes.plot(*zip(*of_kind, strict=True), color=COLORS[kind], linewidth=1)
        for name in points:
            filled = name.removesuffix(GRAPH) == PRESTO
            face = COLORS[kind] if filled else "#fff"
            axes.plot(*points[name][kind], marker, color=COLORS[kind], markerfacecolor=face, markersize=7)
    last = list(points)[-1]
    _labels(axes, {k: points[last][k] for k in kinds if k in points[last]}, high * 1.6)
    for name, face in ((REFERENCE, "#fff"), (PRESTO, "#444")):
        axes.plot([], [], "o", color="#444", markerfacecolor=face, label=name)
    axes.legend(loc="upper left", fontsize=8)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(which="major", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figures.save(figure, path)


def _labels(axes: Any, points: dict[str, tuple[float, float]], x: float) -> None:
    """Names in a column at the right, apart from each other, each with a thin line to its point."""
    order = sorted(points, key=lambda kind: points[kind][1])
    low, high = np.log(axes.get_ylim())
    least = (high - low) / 22
    heights = [float(np.log(points[kind][1])) for kind in order]
    for _ in range(200):  # neighbours that are too near each other move apart by half of what is missing
        for below in range(len(heights) - 1):
            missing = max(0.0, least - (heights[below + 1] - heights[below])) / 2
            heights[below] -= missing
            heights[below + 1] += missing
        heights = [min(max(height, low + least), high - least) for height in heights]
    for kind, height in zip(order, heights, strict=True):
        axes.annotate(
            kind,
            points[kind],
            xytext=(x, float(np.exp(height))),
            fontsize=8,
            color="#333",
            va="center",
            arrowprops={"arrowstyle": "-", "color": COLORS[kind], "linewidth": 0.5, "relpos": (0, 0.5)},
        )


def _sides(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """The reference and presto, of their CUDA graphs where both have kinds, else of eager calls."""
    for suffix in (GRAPH, ""):
        sides: dict[str, dict[str, Row]] = {}
        for name in (REFERENCE + suffix, PRESTO + suffix):
            kinds = {row["kind"]: row for row in rows if row["implementation"] == name}
            if len(kinds) > 2:
                sides[name] = kinds
        if len(sides) == 2 or (sides and not suffix):
            return sides
    raise ValueError("there is no profile to draw")


def _value(axes: Any, x: float, y: float, ms: float, widest: float) -> None:
    axes.text(x + 0.008 * widest, y, show.number(ms), va="center", fontsize=7.5)
