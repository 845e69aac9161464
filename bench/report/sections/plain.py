"""Any file as a table: what measured, its time, and every other field that is one value."""

from __future__ import annotations

from bench.report.blocks import Block, Cell, Content, Table
from bench.report.cells import label, memory, ms, ratio
from bench.report.source import Source, number, text
from bench.results import IDENTITY, Row

IN_OTHER_COLUMNS = {*IDENTITY, "key", "ms_p50", "ms_p50_interval", "ms_p99_interval", "samples_ms"}


def blocks(source: Source) -> list[Block]:
    """The rows, and the summary's single values."""
    return [*summary(source), *rows_table(source)]


def rows_table(source: Source, title: str = "Rows") -> list[Block]:
    """Every row and every field of one value; a ratio with its interval."""
    rows = [row for row in source.rows if isinstance(row, dict)]
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row))
    others = [name for name in names if name not in IN_OTHER_COLUMNS and _interval_is_shown(name, names)]
    timed = [name for name in ("ms_p50",) if name in names]
    columns = ("what", "implementation", *(["p50 ms"] if timed else []), *(_words(name) for name in others))
    cells = [
        (label(row), text(row.get("implementation")), *(ms(row, name) for name in timed), *_others(row, others))
        for row in rows
    ]
    return [Table(title, columns, cells, left=2, folded=len(rows) > 40, short=len(others) <= 6)]


def summary(source: Source) -> list[Block]:
    """The summary's values that are one word, number or ratio, two columns."""
    rows = [
        (_words(name), ratio(source.summary, name) if "_over_" in name else text(value))
        for name, value in source.summary.items()
        if isinstance(value, (str, int, float)) and not name.endswith("_interval")
    ]
    return [Table("Summary", ("figure", "value"), rows)] if rows else []


def _others(row: Row, names: list[str]) -> list[Content]:
    found: list[Content] = []
    for name in names:
        if "over_" in name and number(row, name) is not None:
            found.append(ratio(row, name))
        elif name.endswith("_bytes"):
            found.append(memory(row, name))
        elif name.startswith("ms_"):
            found.append(ms(row, name))
        else:
            found.append(Cell(text(row.get(name))))
    return found


def _interval_is_shown(name: str, names: list[str]) -> bool:
    """An interval stands behind its figure, in the figure's column."""
    return not (name.endswith("_interval") and name.removesuffix("_interval") in names)


def _words(name: str) -> str:
    return name.replace("_", " ")
