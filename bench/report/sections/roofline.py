"""Rates against arithmetic intensity, under this machine's own measured ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench import show
from bench.report import figures
from bench.report.blocks import Block
from bench.report.source import Source, number


@dataclass(frozen=True)
class Point:
    """An op: flops a byte, TFLOP/s; `group` gives the colour and stands in the legend."""

    name: str
    group: str
    intensity: float
    tflops: float


def point(name: str, group: str, row: Any) -> Point | None:
    """From a row's bytes, flops and median; None where one is missing."""
    moved, flops, took = number(row, "bytes"), number(row, "flops"), number(row, "ms_p50")
    if not moved or not flops or not took:
        return None
    return Point(name, group, flops / moved, flops / took / 1e9)


def roofline(source: Source, points: Sequence[Point], title: str = "Roofline") -> list[Block]:
    """Log-log, with a slope (the copy) and a level for each dtype (the matrix product)."""
    ceilings = source.meta.get("ceilings")
    copy_gbs = number(ceilings, "copy_gbs")
    products = ceilings.get("matmul_tflops") if isinstance(ceilings, dict) else None
    peaks = {name: number(products, name) for name in products} if isinstance(products, dict) else {}
    peaks = {name: peak for name, peak in peaks.items() if peak}
    if not points or not copy_gbs or not peaks:
        return []
    groups = list(dict.fromkeys(each.group for each in points))

    def draw(axes: Any) -> None:
        intensities = [each.intensity for each in points]
        ridge = max(peaks.values()) * 1e3 / copy_gbs
        low, high = min(*intensities, ridge) / 2, max(*intensities, ridge) * 2.5
        axes.plot([low, ridge], [low * copy_gbs / 1e3, max(peaks.values())], color=figures.MUTED, linewidth=1.1)
        for name, peak in peaks.items():
            axes.plot([peak * 1e3 / copy_gbs, high], [peak, peak], color=figures.MUTED, linewidth=1.1)
            axes.annotate(
                f"matmul {name}", (high, peak), xytext=(-2, 3), textcoords="offset points", ha="right", fontsize=8
            )
        for index, group in enumerate(groups):
            of_it = [each for each in points if each.group == group]
            color, marker = figures.SERIES[index % len(figures.SERIES)], "osD^vP"[index // len(figures.SERIES) % 6]
            axes.scatter(
                [each.intensity for each in of_it],
                [each.tflops for each in of_it],
                s=16,
                color=color,
                marker=marker,
                label=group,
                zorder=3,
            )
        axes.set(xlim=(low, high), xlabel="flops a byte", ylabel="TFLOP/s")
        figures.log_axis(axes, "x")
        figures.log_axis(axes, "y")
        axes.annotate(
            f"copy {show.number(copy_gbs)} GB/s",
            (low, low * copy_gbs / 1e3),
            xytext=(2, 12),
            textcoords="offset points",
            fontsize=8,
        )
        axes.figure.legend(loc="outside lower center", ncols=2)

    nearest = ", ".join(
        f"{each.name} {show.number(each.tflops)} TFLOP/s at {each.intensity:.3g}" for each in points[:12]
    )
    alt = f"Roofline, {len(points)} points under a copy of {show.number(copy_gbs)} GB/s: {nearest}."
    return [figures.figure(title, alt, 3.3 + 0.17 * ((len(groups) + 1) // 2), draw)]
