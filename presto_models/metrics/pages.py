"""A Markdown page with a table in it that is written by a command.

The page has a mark alone on a line, ``<!-- methods -->``; the table stands between it and ``<!-- end -->``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from presto_models.files import written_beside

END = "<!-- end -->"


def check_page(path: str | os.PathLike[str], mark: str) -> None:
    """FileNotFoundError, ValueError: there is no such page, or it has no mark."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"docs: no file {path}; write one with a line {mark}")
    if mark not in Path(path).read_text():
        raise ValueError(f"docs: {path} has no line {mark}, behind which the table goes")


def write_page(path: str | os.PathLike[str], mark: str, table: str) -> None:
    """Puts the table into a page, whole or not at all."""
    check_page(path, mark)
    text = fill_page(Path(path).read_text(), mark, table)
    with written_beside(path) as beside:
        beside.write_text(text)


def fill_page(text: str, mark: str, table: str) -> str:
    """The page with the table as it is now."""
    block = f"{mark}\n\n{table}\n\n{END}"
    return re.sub(rf"{mark}(?:.*?{END})?", lambda _: block, text, count=1, flags=re.S)
