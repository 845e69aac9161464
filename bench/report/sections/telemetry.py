"""What the device did while it was timed: power, clocks, temperature, energy, as far as the file says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.report.blocks import Block, Table
from bench.report.source import Source, text


def telemetry(source: Source) -> list[Block]:
    rows = [
        (name, value)
        for part in ("telemetry", "gpu")
        if isinstance(source.meta.get(part), Mapping)
        for name, value in _flat(source.meta[part])
    ]
    return [Table("While it ran", ("figure", "value"), rows, folded=len(rows) > 12)] if rows else []


def _flat(fields: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str | None]]:
    for name, value in fields.items():
        title = f"{before}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{title}, ")
        elif not isinstance(value, list) or len(value) <= 8:  # a longer one is a trace
            yield title, text(value)
