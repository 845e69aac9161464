"""The most memory each stage holds."""

from __future__ import annotations

from typing import Any

from bench import show
from bench.report import cells, figures
from bench.report.blocks import Block, Cell, Table
from bench.report.source import Source, number, text
from bench.results import Row


def blocks(source: Source) -> list[Block]:
    rows = [row for row in source.rows if number(row, "peak_bytes") is not None]
    return [*plot(rows), *table(rows)]


def plot(rows: list[Row]) -> list[Block]:
    """A bar a row; the same colour is the same implementation."""
    if not rows or len(rows) > 40:
        return []
    colors = figures.colors_of(dict.fromkeys(text(row.get("implementation")) or "-" for row in rows))

    def draw(axes: Any) -> None:
        figures.bars(axes, [cells.label(row) for row in rows])
        for index, row in enumerate(rows):
            size, name = (number(row, "peak_bytes") or 0.0) / 1e6, text(row.get("implementation")) or "-"
            first = name not in [text(each.get("implementation")) or "-" for each in rows[:index]]
            axes.barh(index, size, height=0.68, color=colors[name], label=name if first else None)
            figures.number_at(axes, size, index, size)
        axes.set_xlabel("MB")
        axes.figure.legend(loc="outside lower center", ncols=3)

    words = ", ".join(f"{_name(row)} {show.number((number(row, 'peak_bytes') or 0.0) / 1e6)} MB" for row in rows)
    return [figures.figure("Peak memory", f"Bars. {words}.", figures.height_for(len(rows), around=0.95), draw)]


def table(rows: list[Row]) -> list[Block]:
    """Beside the reference's peak at the same stage, batch and length, where there is one."""
    of_reference = {cells.label(row): row for row in rows if row.get("implementation") == "reference"}
    made = []
    for row in rows:
        peak, plain = number(row, "peak_bytes"), number(of_reference.get(cells.label(row)), "peak_bytes")
        share = Cell(show.percent(peak / plain)) if plain and peak is not None else Cell(None)
        made.append((cells.label(row), text(row.get("implementation")), cells.memory(row), share))
    columns = ("stage, batch, latents", "implementation", "peak", "of the reference")
    return [Table("Peak memory", columns, made, left=2, short=True)] if made else []


def _name(row: Row) -> str:
    return f"{cells.label(row)} {text(row.get('implementation')) or ''}".strip()
