"""compare and gate: which rows got slower, which faster, which cannot be told."""

from __future__ import annotations

from collections import Counter

from bench.report.blocks import BAD, GOOD, QUIET, WARN, Block, Cell, Note, Table
from bench.report.cells import change, word
from bench.report.source import Source, number, text
from bench.results import Row

TONES = {"slower": BAD, "gone": WARN, "inconclusive": WARN, "faster": GOOD, "new": QUIET, "same": QUIET}
"""Verdicts in the order of the table, worst first."""


def blocks(source: Source) -> list[Block]:
    rows = [row for row in source.rows if row.get("verdict") is not None]
    rows.sort(key=lambda row: (_rank(row), -(number(row, "change") or 0.0)))
    told = [row for row in rows if row.get("verdict") != "same"]
    same = [row for row in rows if row.get("verdict") == "same"]
    words, tone = verdict(source)
    return [
        Note(words, tone, short=True),
        *_table("Rows that changed, or may have", told, short=True),
        *_table(f"The same: {len(same)}", same, folded=True),
    ]


def verdict(source: Source) -> tuple[str, str]:
    """ "2 rows slower, 40 the same", in the tone of the worst."""
    counts = Counter(str(row.get("verdict")) for row in source.rows if row.get("verdict") is not None)
    if not counts:
        return f"{source.bench}: nothing compared", WARN
    order = sorted(counts, key=lambda name: list(TONES).index(name) if name in TONES else -1)
    said = ", ".join(f"{counts[name]} {'the same' if name == 'same' else name}" for name in order)
    tone = next((TONES.get(name, WARN) for name in order if TONES.get(name, WARN) != QUIET), GOOD)
    return f"{source.bench}: of {sum(counts.values())} rows {said}", tone


def _table(title: str, rows: list[Row], *, short: bool = False, folded: bool = False) -> list[Block]:
    cells = [
        (
            text(row.get("key")),
            Cell(text(row.get("verdict")), TONES.get(str(row.get("verdict")), WARN)),
            _change(row),
            Cell(None if (p := number(row, "p_value")) is None else f"{p:.2g}"),
            word(row, "reason"),
        )
        for row in rows
    ]
    if not cells:
        return []
    with_reason = any(row[-1] is not None for row in cells)
    columns = ("row", "verdict", "change (95 %)", "p", "why")
    kept = len(columns) if with_reason else len(columns) - 1
    return [Table(title, columns[:kept], [row[:kept] for row in cells], left=2, short=short, folded=folded)]


def _change(row: Row) -> Cell:
    """In the verdict's tone: a test of all rows together may not believe what one row's interval says."""
    return Cell(change(row).text, {"slower": BAD, "faster": GOOD}.get(str(row.get("verdict")), QUIET))


def _rank(row: Row) -> int:
    name = str(row.get("verdict"))
    return list(TONES).index(name) if name in TONES else -1
