"""Each optimisation off, one at a time: how much longer it takes without it."""

from __future__ import annotations

from typing import Any

from bench.report import figures
from bench.report.blocks import Block, Table
from bench.report.cells import memory, ms, ratio, word
from bench.report.source import Source, interval, number, text
from bench.results import Row


def blocks(source: Source) -> list[Block]:
    rows = [row for row in source.rows if row.get("ablation") is not None]
    return [*plot([row for row in rows if number(row, "over_all_on") is not None]), *table(rows)]


def plot(rows: list[Row]) -> list[Block]:
    """Bars from 1 on, with intervals: to the right the optimisation helps, to the left it costs."""
    if not rows:
        return []
    rows = sorted(rows, key=lambda row: -(number(row, "over_all_on") or 0))

    def draw(axes: Any) -> None:
        figures.bars(axes, [_name(row) for row in rows])
        for index, row in enumerate(rows):
            value, ends = number(row, "over_all_on") or 1.0, interval(row, "over_all_on")
            color = figures.OURS if value >= 1 else figures.COLORS["bad"]
            axes.barh(index, value - 1, left=1, height=0.62, color=color)
            if ends is not None:
                error = [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]
                axes.errorbar(value, index, xerr=error, color=figures.INK, capsize=2, linewidth=0.9)
            figures.number_at(axes, max(1.0, value, *(ends or ())), index, value, unit="x")
        axes.axvline(1, color=figures.MUTED, linewidth=1)
        axes.set_xlabel("time without it / time with everything on")

    words = ", ".join(f"without {_name(row)} {number(row, 'over_all_on'):.3f} times" for row in rows)
    return [figures.figure("Each optimisation off", f"Bars. {words}.", figures.height_for(len(rows)), draw)]


def table(rows: list[Row]) -> list[Block]:
    cells = [
        (
            text(row.get("ablation")),
            text(row.get("part")),
            ms(row),
            ratio(row, "over_all_on"),
            {True: "yes", False: "no"}.get(row.get("lossless")),  # type: ignore[arg-type]
            memory(row),
            word(row, "rounds"),
        )
        for row in rows
    ]
    columns = ("off", "part", "p50 ms", "over all on (95 %)", "same result", "peak memory", "rounds")
    return [Table("Each optimisation off, one at a time", columns, cells, left=2, short=True)] if rows else []


def _name(row: Row) -> str:
    return " ".join(part for part in (text(row.get("ablation")), text(row.get("part"))) if part)
