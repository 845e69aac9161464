"""What a section is made of, before it is HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

GOOD, BAD, WARN, QUIET = "good", "bad", "warn", "quiet"
"""Tones: a gain or a target met; a loss or a target missed; doubtful; of less interest."""


@dataclass(frozen=True)
class Cell:
    """A table's cell.

    Attributes:
        text: shown as it is, never markup; None is a dash.
        drawing: an inline SVG beside the text, in HTML alone.
    """

    text: str | None
    tone: str = ""
    drawing: str = ""


Content = Cell | str | None
Cells = Sequence[Content]


def cell(content: Content) -> Cell:
    return content if isinstance(content, Cell) else Cell(content)


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        left: so many columns are names, the others numbers.
        words: columns behind them that are words all the same.
        short: also in the Markdown summary.
        folded: on the page closed until asked for.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Cells]
    left: int = 1
    words: Sequence[str] = ()
    short: bool = False
    folded: bool = False

    def is_words(self, index: int) -> bool:
        return index < self.left or self.columns[index] in self.words


def without_empty(table: Table) -> Table:
    """The table without those columns of numbers that have none."""
    rows = [[cell(content) for content in row] for row in table.rows]
    kept = [i for i in range(len(table.columns)) if i < table.left or any(row[i].text is not None for row in rows)]
    return replace(table, columns=[table.columns[i] for i in kept], rows=[[row[i] for i in kept] for row in rows])


@dataclass(frozen=True)
class Figure:
    """A plot as inline SVG; `alt` says in words what it shows."""

    title: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Note:
    """A sentence."""

    text: str
    tone: str = ""
    short: bool = False


Block = Table | Figure | Note


@dataclass(frozen=True)
class Section:
    """One file, or the history of several; `about` names device, commit and date."""

    title: str
    about: str
    marks: Sequence[str]
    blocks: Sequence[Block]
