"""The summary for a pull request: the verdict, what makes figures doubtful, the tables people quote."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from bench.report.blocks import BAD, GOOD, WARN, Cell, Note, Section, Table, cell

LIMIT = 60_000
"""Bytes; GitHub takes a comment of 65,536 characters, and a summary of a megabyte."""

MOST_ROWS, MOST_NOTES, LONGEST = 25, 12, 200
SIGNS = {GOOD: "✅ ", BAD: "❌ ", WARN: "⚠️ "}


def markdown(
    title: str, notes: Sequence[Note], marks: Sequence[Note], sections: Sequence[Section], artifact: str | None
) -> str:
    """Never more than LIMIT bytes: sections that do not fit are named."""
    parts = [f"## {escape(title)}", _list(notes), _list(marks), _where(artifact)]
    left_out = []
    for section in sections:
        made = _section(section)
        if made is None:
            continue
        if len("\n\n".join([*parts, made]).encode()) > LIMIT - 6_000:  # room for their names
            left_out.append(escape(section.title[:60]))
        else:
            parts.append(made)
    if left_out:
        names = ", ".join(left_out[:MOST_NOTES]) + (", ..." if len(left_out) > MOST_NOTES else "")
        parts.append(f"Left out for length, in the page: {names}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Text that GitHub shows as it is, on one line."""
    line = " ".join(text.split())
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ..."
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", html.escape(line, quote=False)).replace("@", "@\u200b")


def _section(section: Section) -> str | None:
    shown = [block for block in section.blocks if isinstance(block, (Table, Note)) and block.short]
    if not shown:
        return None
    parts = [f"### {escape(section.title)}", escape(section.about)]
    for block in shown:
        parts.append(_note(block) if isinstance(block, Note) else _table(block))
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    """Without the columns that only have drawings."""
    rows = [[cell(content) for content in row] for row in table.rows]
    kept = [index for index in range(len(table.columns)) if not any(row[index].drawing for row in rows)]
    align = ["---" if table.is_words(index) else "---:" for index in kept]
    lines = [
        f"**{escape(table.title)}**\n",
        _line(escape(table.columns[index]) for index in kept),
        _line(align),
        *(_line(_cell(row[index]) for index in kept) for row in rows[:MOST_ROWS]),
    ]
    if len(rows) > MOST_ROWS:
        lines.append(f"\n{len(rows) - MOST_ROWS} more rows in the page.")
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(content: Cell) -> str:
    """A loss in bold, with its sign: a table of gains must not hide it."""
    if content.text is None:
        return "-"
    text = escape(content.text)
    return f"**{text}** {SIGNS[BAD].strip()}" if content.tone == BAD else text


def _list(notes: Sequence[Note]) -> str:
    lines = [f"- {_note(note)}" for note in notes[:MOST_NOTES]]
    if len(notes) > MOST_NOTES:
        lines.append(f"- and {len(notes) - MOST_NOTES} more in the page")
    return "\n".join(lines)


def _note(note: Note) -> str:
    return f"{SIGNS.get(note.tone, '')}{escape(note.text)}"


def _where(artifact: str | None) -> str:
    """Where the whole page is: a link for an address, else a name."""
    if artifact is None:
        return ""
    words = "every table and plot: waterfall, roofline, scaling, history"
    if re.fullmatch(r"https?://[^\s<>()]+", artifact):
        return f"[The page]({artifact}) has {words}."
    return f"The page has {words}: {escape(artifact)}."
