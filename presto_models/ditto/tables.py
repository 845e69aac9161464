"""CSV files of two columns: what happens when."""

from __future__ import annotations

import csv
import math
import os
from itertools import pairwise
from pathlib import Path


def read_table(path: str | os.PathLike[str], value: str) -> list[tuple[int, float, str]]:
    """Of a file with the header ``seconds,<value>``: (number of its line, seconds, value as it stands) of each row.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not text, another header, a row of other than two fields, seconds that are no number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    wanted = ["seconds", value]
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(line, [f.strip() for f in fields]) for line, fields in enumerate(csv.reader(file), 1)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from error
    rows = [(line, fields) for line, fields in rows if any(fields)]
    if not rows or rows[0][1] != wanted:
        came = ",".join(rows[0][1])[:80] if rows else "nothing"
        raise ValueError(f"{path} must begin with the header {','.join(wanted)}, got {came}")
    table = []
    for line, fields in rows[1:]:
        if len(fields) != 2:
            raise ValueError(f"{path}, line {line}: expected {','.join(wanted)}, got {len(fields)} fields")
        table.append((line, number(fields[0], f"{path}, line {line}: seconds"), fields[1]))
    if not table:
        raise ValueError(f"{path} holds a header and nothing behind it")
    return table


def number(text: str, name: str) -> float:
    """``text`` as a finite number; ``name`` is what the message calls it."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a number, got {text!r}")
    return value


def check_times(seconds: tuple[float, ...], what: str) -> None:
    """Raises ValueError unless the times are finite, not negative and increasing."""
    if not all(math.isfinite(t) and t >= 0 for t in seconds):
        bad = next(t for t in seconds if not (math.isfinite(t) and t >= 0))
        raise ValueError(f"{what}: seconds must be finite and not negative, got {bad}")
    for before, after in pairwise(seconds):
        if after <= before:
            raise ValueError(f"{what}: seconds must increase, got {after:g} after {before:g}")
