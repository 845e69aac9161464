"""Rates against arithmetic intensity, under this machine's own measured ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench import show
from bench.report import figures
from bench.report.blocks import Block
from bench.report.source import Source, number

MARKERS = "osD^vP"


@dataclass(frozen=True)
class Point:
    """An op: flops a byte, TFLOP/s; `group` gives the colour, `dtype` the marker."""

    name: str
    group: str
    dtype: str
    intensity: float
    tflops: float


def point(name: str, group: str, row: Any) -> Point | None:
    """From a row's bytes, flops and median; None where one is missing."""
    moved, flops, took = number(row, "bytes"), number(row, "flops"), number(row, "ms_p50")
    if not moved or not flops or not took:
        return None
    return Point(name, group, str(row.get("dtype") or ""), flops / moved, flops / took / 1e9)


def roofline(source: Source, points: Sequence[Point], title: str = "Roofline") -> list[Block]:
    """Log-log, with a slope (the copy) and a level for each dtype (the matrix product)."""
    ceilings = source.meta.get("ceilings")
    copy_gbs = number(ceilings, "copy_gbs")
    products = ceilings.get("matmul_tflops") if isinstance(ceilings, dict) else None
    names = products if isinstance(products, dict) else {}
    peaks = {name: peak for name in names if (peak := number(products, name))}
    if not points or not copy_gbs or not peaks:
        return []
    groups = list(dict.fromkeys(each.group for each in points))
    dtypes = list(dict.fromkeys(each.dtype for each in points))

    def draw(axes: Any) -> None:
        intensities = [each.intensity for each in points]
        ridge = max(peaks.values()) * 1e3 / copy_gbs
        low, high = min(*intensities, ridge) / 2, max(*intensities, ridge) * 2.5
        axes.plot([low, ridge], [low * copy_gbs / 1e3, max(peaks.values())], color=figures.MUTED, linewidth=1.1)
        for name, peak in peaks.items():
            axes.plot([peak * 1e3 / copy_gbs, high], [peak, peak], color=figures.MUTED, linewidth=1.1)
            at = {"xytext": (-2, 3), "textcoords": "offset points", "ha": "right", "fontsize": figures.SMALL}
            axes.annotate(name, (high, peak), **at)
        for each in points:
            axes.scatter(each.intensity, each.tflops, s=20, zorder=3, **_look(each.group, each.dtype))
        for group in groups:
            axes.scatter([], [], s=20, label=group, **_look(group, dtypes[0]))
        for dtype in dtypes if len(dtypes) > 1 else ():
            axes.scatter([], [], s=20, label=dtype, **_look(groups[0], dtype) | {"color": figures.MUTED})
        axes.margins(y=0.12)
        axes.set(xlim=(low, high), xlabel="flops a byte", ylabel="TFLOP/s")
        figures.log_axis(axes, "x")
        figures.log_axis(axes, "y")
        axes.figure.legend(loc="outside lower center", ncols=2)

    def _look(group: str, dtype: str) -> dict[str, str]:
        index = groups.index(group)
        color = figures.SERIES[index % len(figures.SERIES)]
        return {"color": color, "marker": MARKERS[(dtypes.index(dtype) + index // len(figures.SERIES)) % len(MARKERS)]}

    nearest = ", ".join(
        f"{each.name} {show.number(each.tflops)} TFLOP/s at {each.intensity:.3g}" for each in points[:12]
    )
    title = f"{title}: copy {show.number(copy_gbs)} GB/s, matmul {', '.join(peaks)}"
    alt = f"{len(points)} points under the measured ceilings: {nearest}."
    return [figures.figure(title, alt, 3.1 + 0.18 * ((len(groups) + len(dtypes) + 1) // 2), draw)]
