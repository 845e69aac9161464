"""A result file as the report reads it: whatever is missing or of another kind is absent, never an error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import schema
from bench.results import Report, Row

BUSY = 0.5
"""A load average above it means that something else ran, as `show.machine_line` says at the time."""


@dataclass(frozen=True)
class Source:
    """One file.

    Attributes:
        name: of the file, without its folder.
        version: of the schema it was written in.
    """

    name: str
    report: Report
    version: int

    @property
    def bench(self) -> str:
        return self.report.bench

    @property
    def meta(self) -> Mapping[str, Any]:
        return self.report.meta

    @property
    def rows(self) -> list[Row]:
        return self.report.rows

    @property
    def summary(self) -> Mapping[str, Any]:
        return self.report.summary

    @property
    def device(self) -> str:
        return text(self.meta.get("device")) or "device not said"

    @property
    def commit(self) -> str | None:
        """Seven digits, and a + behind them where files had changes."""
        commit = text(self.meta.get("commit"))
        return None if commit is None else commit[:7] + ("+" if commit.endswith("+dirty") else "")

    @property
    def date(self) -> str | None:
        return text(self.meta.get("date"))

    @property
    def about(self) -> str:
        """Whose figures these are, in one line: device, commit, day, file."""
        parts = [self.device, self.commit and f"commit {self.commit}", self.date and self.date[:10], self.name]
        return " · ".join(part for part in parts if part)

    @property
    def marks(self) -> list[str]:
        """What makes the figures doubtful: what the bench said, and what its other fields tell."""
        given = self.meta.get("marks")
        marks = [str(mark) for mark in given] if isinstance(given, list) else []
        load = number(self.meta, "load_average")
        if load is not None and load > BUSY and not any("busy" in mark or "load" in mark for mark in marks):
            marks.append(f"busy: load average {load:g} when it began")
        if (self.commit or "").endswith("+"):
            marks.append("uncommitted changes: the commit alone does not give these figures")
        return marks


def read(paths: Iterable[str | Path]) -> list[Source]:
    """The files, in the order of their dates.

    Raises:
        schema.ResultError: naming the file that is none.
    """
    sources = []
    for path in paths:
        content = schema.parse(path)
        now = schema.upgrade(content)
        report = Report(**{name: now[name] for name in ("meta", "rows", "summary", "refused")}, bench=str(now["bench"]))
        sources.append(Source(Path(path).name, report, schema.version(content)))
    return sorted(sources, key=lambda source: (source.date or "", source.name))


def number(fields: Any, name: str) -> float | None:
    """A finite number, or None."""
    value = fields.get(name) if isinstance(fields, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def interval(fields: Any, name: str) -> tuple[float, float] | None:
    """The field `name`_interval, where it is two numbers."""
    ends = fields.get(f"{name}_interval") if isinstance(fields, Mapping) else None
    if not isinstance(ends, (list, tuple)) or len(ends) != 2:
        return None
    low, high = (number({"end": end}, "end") for end in ends)
    return None if low is None or high is None else (low, high)


def text(value: Any) -> str | None:
    """A field as one line of words; None for what is absent or empty."""
    if value is None or value == "" or value == [] or value == {}:
        return None
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text(each) or '-'}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return "x".join(str(each) for each in value) if _short_whole(value) else ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _short_whole(values: list[Any] | tuple[Any, ...]) -> bool:
    """Whether it is a shape."""
    return len(values) <= 6 and all(isinstance(value, int) and not isinstance(value, bool) for value in values)
