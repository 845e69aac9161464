"""Every op beside eager PyTorch and torch.compile, losses as plainly as gains; rooflines; how near the floor."""

from __future__ import annotations

from typing import Any

from bench.report import figures
from bench.report.blocks import BAD, Block, Note, Table
from bench.report.cells import label, ms, percent, plain, ratio, word
from bench.report.sections import roofline
from bench.report.source import Source, interval, number
from bench.results import Row

COLUMNS = ("p50 ms", "eager / it", "compile / it", "it / copy", "of floor", "GB/s")


def blocks(source: Source) -> list[Block]:
    rows = [row for row in source.rows if row.get("op") is not None and number(row, "ms_p50") is not None]
    taken = [row for row in rows if row.get("auto")] or rows
    if any(row.get("mode") == "graph" for row in taken):
        taken = [row for row in taken if row.get("mode") == "graph"]
    points = [
        roofline.point(_where(row), str(row["op"]), row)
        for row in taken
        if row.get("direction", "forward") == "forward"
    ]
    return [
        *roofline.roofline(source, [each for each in points if each is not None], "Roofline, forward"),
        *shares(taken),
        *losses(taken),
        *table("What dispatch takes", taken, short=True),
        *(table("Every implementation", rows, folded=True) if len(rows) > len(taken) else []),
    ]


def table(title: str, rows: list[Row], *, short: bool = False, folded: bool = False) -> list[Block]:
    """Losses first, in the order of the file else."""
    if not rows:
        return []
    cells = [
        (
            _where(row),
            word(row, "implementation"),
            word(row, "mode"),
            ms(row),
            ratio(row, "eager_over_this"),
            ratio(row, "compile_over_this"),
            plain(row, "this_over_copy"),
            percent(row, "share_of_floor"),
            plain(row, "gbs"),
        )
        for row in (sorted(rows, key=lambda row: not _lost(row)) if short else rows)
    ]
    return [Table(title, ("op", "ran", "mode", *COLUMNS), cells, left=3, short=short, folded=folded)]


def losses(taken: list[Row]) -> list[Block]:
    """In how many cases a baseline is ahead, beyond its interval."""
    taken = [row for row in taken if any(interval(row, f"{side}_over_this") for side in ("eager", "compile"))]
    if not taken:
        return []
    lost = [_where(row) for row in taken if _lost(row)]
    if not lost:
        return [Note(f"No baseline is ahead beyond its interval in any of {len(taken)} cases.", short=True)]
    named = "; ".join(lost[:6]) + ("; ..." if len(lost) > 6 else "")
    return [Note(f"A baseline is ahead in {len(lost)} of {len(taken)} cases: {named}.", short=True)]


def shares(taken: list[Row]) -> list[Block]:
    """A dot a case: how much of the floor's rate each op reaches."""
    of_op: dict[str, list[float]] = {}
    for row in taken:
        share = number(row, "share_of_floor")
        if share is not None:
            of_op.setdefault(f"{row.get('op')} {row.get('direction') or ''}".strip(), []).append(share)
    if not of_op:
        return []
    names = sorted(of_op, key=lambda name: -max(of_op[name]))

    def draw(axes: Any) -> None:
        figures.bars(axes, names)
        for index, name in enumerate(names):
            values = [100 * share for share in of_op[name]]
            axes.plot([min(values), max(values)], [index, index], color=figures.GRID, linewidth=3, zorder=1)
            axes.scatter(values, [index] * len(values), s=16, color=figures.OURS, zorder=3)
        axes.axvline(100, color=figures.MUTED, linewidth=1)
        axes.set_xlim(left=0)
        axes.set_xlabel("% of the floor's rate")

    words = ", ".join(f"{name} {100 * min(of_op[name]):.0f} to {100 * max(of_op[name]):.0f} %" for name in names)
    return [
        figures.figure(
            "Share of the floor (above 100 %: data in cache)",
            f"A dot a case. {words}.",
            figures.height_for(len(names)),
            draw,
        )
    ]


def _lost(row: Row) -> bool:
    return any(ratio(row, f"{side}_over_this").tone == BAD for side in ("eager", "compile"))


def _where(row: Row) -> str:
    return label(row, without=("implementation", "mode"))
