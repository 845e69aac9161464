"""compare and gate: which rows got slower, which faster, which cannot be told."""

from __future__ import annotations

from collections import Counter

from bench.report.blocks import BAD, GOOD, QUIET, WARN, Block, Cell, Note, Table, without_empty
from bench.report.cells import word
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
    """ "gate against 0123456: of 42 rows 2 slower, 40 the same", in the tone of the worst."""
    before = text(source.meta.get("baseline_commit") or source.meta.get("old_commit"))
    name = source.bench + (f" against {before[:7]}" if before else "")
    counts = Counter(str(row.get("verdict")) for row in source.rows if row.get("verdict") is not None)
    if not counts:
        return f"{name}: nothing was compared", WARN
    order = sorted(counts, key=lambda each: list(TONES).index(each) if each in TONES else -1)
    said = ", ".join(f"{counts[each]} {'the same' if each == 'same' else each}" for each in order)
    tone = next((TONES.get(each, WARN) for each in order if TONES.get(each, WARN) != QUIET), GOOD)
    accepted = number(source.summary, "fail_above")
    limit = "" if accepted is None else f" (slower is more than {100 * accepted:g} %)"
    if source.summary.get("verdict") == "stopped":
        name, tone = f"{name}, stopped before its end", BAD if tone == BAD else WARN
    return f"{name}: of {sum(counts.values())} rows {said}{limit}", tone


def _table(title: str, rows: list[Row], *, short: bool = False, folded: bool = False) -> list[Block]:
    cells = [
        (
            text(row.get("subject") or row.get("key")),
            Cell(text(row.get("verdict")), TONES.get(str(row.get("verdict")), WARN)),
            _change(row),
            Cell(None if (p := number(row, "p_value")) is None else f"{p:.2g}"),
            _launches(row),
            word(row, "note"),
        )
        for row in rows
    ]
    if not cells:
        return []
    columns = ("row", "verdict", "change (95 %)", "p, corrected", "launches", "note")
    return [without_empty(Table(title, columns, cells, left=2, words=("note",), short=short, folded=folded))]


def _change(row: Row) -> Cell:
    """ "+3.2 % (+2.9 to +3.6)" of a fraction, more is slower; an interval may be open upwards.

    In the verdict's tone: a test of all rows together may not believe what one row's interval says.
    """
    value, ends = number(row, "change"), row.get("change_interval")
    if value is None:
        return Cell(None)
    shown = f"{100 * value:+.1f} %"
    if isinstance(ends, list) and len(ends) == 2:
        low, high = (None if number({"": end}, "") is None else f"{100 * end:+.1f}" for end in ends)
        shown += f" ({low or '?'} to {high or '?'})"
    return Cell(shown, {"slower": BAD, "faster": GOOD}.get(str(row.get("verdict")), QUIET))


def _launches(row: Row) -> str | None:
    made = row.get("launches")
    return str(len(made)) if isinstance(made, list) else None


def _rank(row: Row) -> int:
    name = str(row.get("verdict"))
    return list(TONES).index(name) if name in TONES else -1
