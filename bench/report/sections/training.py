"""train, decode, distill: whole calls beside plain PyTorch and torch.compile."""

from __future__ import annotations

from bench.report.blocks import Block, Cell, Table
from bench.report.cells import in_use, label, memory, ms, percent, plain, ratio, word
from bench.report.sections import plain as plain_section
from bench.report.source import Source, number
from bench.results import Row

FIELDS = {
    "ms_p95": "p95 ms",
    "reference_over_this": "reference / it",
    "over_full": "over full",
    "deviation": "from proportional",
    "bound_share": "of the bound",
    "peak_bytes": "peak memory",
    "rounds": "rounds",
}


def blocks(source: Source) -> list[Block]:
    """The table of times, and the summary."""
    rows = [row for row in source.rows if number(row, "ms_p50") is not None]
    if not rows:
        return plain_section.blocks(source)
    columns = in_use(rows, FIELDS)
    named = any(label(row, without=("implementation", "key")) != "-" and _what(row) for row in rows)
    cells = [
        (
            *([_what(row)] if named else []),
            word(row, "implementation"),
            ms(row),
            *(_cell(row, name) for name in columns),
        )
        for row in rows
    ]
    names = (*(["what"] if named else []), "implementation", "p50 ms (95 %)", *columns.values())
    times = Table("Times", names, cells, left=2 if named else 1, short=True)
    return [times, *plain_section.summary(source)]


def _what(row: Row) -> str:
    """What was timed; empty where the implementation alone tells rows apart."""
    found = label(row)
    return "" if found == row.get("key") else found


def _cell(row: Row, name: str) -> Cell | str | None:
    if "_over_" in name:
        return ratio(row, name)
    if name == "peak_bytes":
        return memory(row)
    if name == "bound_share":
        return percent(row, name)
    if name == "over_full":
        return Cell(None if (value := number(row, name)) is None else f"{value:.3f}")
    if name == "deviation":
        return Cell(None if (value := number(row, name)) is None else f"{100 * value:+.1f} %")
    return word(row, name) if name == "rounds" else plain(row, name)
