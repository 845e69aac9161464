"""The page: HTML that needs nothing but itself. Every text from a file is escaped; there is no script."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from itertools import count, groupby
from pathlib import Path

from bench.report.blocks import WARN, Block, Cell, Content, Figure, Note, Section, Table, cell

STYLE = Path(__file__).with_name("style.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""No browser may load anything for this page, whatever came into it."""


def page(title: str, notes: Sequence[Note], marks: Sequence[Note], files: Table, sections: Sequence[Section]) -> str:
    numbers = count(1)
    body = [
        f"<header><h1>{_escape(title)}</h1>",
        _notes(notes),
        f"<section class='marks' aria-label='doubtful figures'>{_notes(marks)}</section>" if marks else "",
        _table(files),
        "</header>",
        _contents(sections),
        "<main>",
        *(_section(section, index, numbers) for index, section in enumerate(sections, 1)),
        "</main>",
        f"<footer>{_escape(FOOTER)}</footer>",
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<style>\n{STYLE.read_text()}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body>\n</html>\n"
    )


FOOTER = (
    "Ratios are medians of the ratios of each round, both sides in the same round; brackets hold 95 % intervals. "
    "Above 1 this code is faster, unless a table says otherwise. ~ uncertain: the interval holds 1, or is wider "
    "than the difference from 1. "
    "A dash: not measured. Times are milliseconds."
)


def _section(section: Section, index: int, numbers: Iterable[int]) -> str:
    parts = [
        f'<section id="s{index}">',
        f"<h2>{_escape(section.title)}</h2>",
        f'<p class="about">{_escape(section.about)}</p>',
        _notes([Note(mark, WARN) for mark in section.marks]),
    ]
    for figures, blocks in groupby(section.blocks, key=lambda block: isinstance(block, Figure)):
        made = "\n".join(_block(block, numbers) for block in blocks)
        parts.append(f'<div class="figures">\n{made}\n</div>' if figures else made)
    return "\n".join([*filter(None, parts), "</section>"])


def _block(block: Block, numbers: Iterable[int]) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Note):
        return _notes([block])
    return _figure(block, next(iter(numbers)))


def _figure(figure: Figure, number: int) -> str:
    """The drawing's ids are made the page's own: two drawings of one page may not share them."""
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\1f{number}-", figure.svg)
    head, body = svg.split(">", 1)
    named = f'{head} aria-labelledby="t{number}"><title id="t{number}">{_escape(figure.alt)}</title>{body}'
    return f"<figure>\n<figcaption>{_escape(figure.title)}</figcaption>\n{named}\n</figure>"


def _table(table: Table) -> str:
    """In a box of its own that scrolls sideways, so that the page does not."""
    title = _escape(table.title)
    columns = (
        f'<th scope="col"{_class(index, table)}>{_escape(name)}</th>' for index, name in enumerate(table.columns)
    )
    lines = (
        "<tr>" + "".join(_cell(content, index, table) for index, content in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    caption = "" if table.folded else f"<caption>{title}</caption>"
    head = f"<table>{caption}\n<thead><tr>{''.join(columns)}</tr></thead>"
    body = "<tbody>\n" + "\n".join(lines) + "\n</tbody></table>"
    box = f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">\n{head}\n{body}\n</div>'
    return f"<details><summary>{title}</summary>\n{box}\n</details>" if table.folded else box


def _cell(content: Content, index: int, table: Table) -> str:
    made: Cell = cell(content)
    inner = "-" if made.text is None else _escape(made.text)
    return f"<td{_class(index, table, made.tone)}>{inner}{made.drawing}</td>"


def _class(index: int, table: Table, tone: str = "") -> str:
    kind = "name" if index < table.left else "words" if table.is_words(index) else ""
    names = " ".join(filter(None, (kind, tone)))
    return f' class="{names}"' if names else ""


def _notes(notes: Sequence[Note]) -> str:
    if not notes:
        return ""
    return (
        "<ul class='notes'>" + "".join(f'<li class="{note.tone}">{_escape(note.text)}</li>' for note in notes) + "</ul>"
    )


def _contents(sections: Sequence[Section]) -> str:
    links = "".join(f'<li><a href="#s{index}">{_escape(each.title)}</a></li>' for index, each in enumerate(sections, 1))
    return f'<nav aria-label="contents"><ul>{links}</ul></nav>'


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
