"""Each optimisation off, one at a time: how much longer it takes without it."""

from __future__ import annotations

from typing import Any

from bench.report import figures
from bench.report.blocks import Block, Table, without_empty
from bench.report.cells import memory, ms, ratio, word
from bench.report.source import Source, interval, number, text
from bench.results import Row

ALL_ON, WHOLE = "nothing", "total"


def blocks(source: Source) -> list[Block]:
    """The whole generation where rows say which part they are of; the parts closed."""
    rows = [row for row in source.rows if row.get("ablation") is not None]
    whole = [row for row in rows if row.get("part") == WHOLE] or rows
    drawn = [row for row in whole if number(row, "over_all_on") is not None and row["ablation"] != ALL_ON]
    saved = source.summary.get("saved")
    return [
        *plot(drawn),
        *table("Each optimisation off, one at a time", whole, saved if isinstance(saved, dict) else {}, short=True),
        *(table("By part", rows, {}, folded=True) if len(rows) > len(whole) else []),
    ]


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


def table(
    title: str, rows: list[Row], saved: dict[str, Any], *, short: bool = False, folded: bool = False
) -> list[Block]:
    """A line an ablation; what it saves where the summary says so."""
    cells = [
        (
            text(row.get("ablation")),
            text(row.get("part")),
            ms(row),
            ratio(row, "over_all_on"),
            ms(saved.get(str(row.get("ablation"))), "ms"),
            word(row, "result"),
            None if row.get("lossless") is None else "yes" if row["lossless"] else "no",
            memory(row),
            word(row, "rounds"),
        )
        for row in rows
    ]
    if not cells:
        return []
    columns = ("off", "part", "p50 ms", "over all on (95 %)", "saves ms", "result", "lossless", "peak memory", "rounds")
    return [without_empty(Table(title, columns, cells, left=2, words=("result",), short=short, folded=folded))]


def _name(row: Row) -> str:
    part = text(row.get("part"))
    return " ".join(each for each in (text(row.get("ablation")), None if part == WHOLE else part) if each)
