"""What each bench's file says on the page: a function from the file to blocks."""

from __future__ import annotations

from collections.abc import Callable

from bench.report.blocks import Block, Section, Table
from bench.report.cells import word
from bench.report.sections import ablate, latency, memory, ops, plain, scaling, steps, training, verdicts
from bench.report.source import Source, text

OF_BENCH: dict[str, Callable[[Source], list[Block]]] = {
    "latency": latency.blocks,
    "steps": steps.blocks,
    "ops": ops.blocks,
    "scaling": scaling.blocks,
    "ablate": ablate.blocks,
    "memory": memory.blocks,
    "train": training.blocks,
    "decode": training.blocks,
    "distill": training.blocks,
    "compare": verdicts.blocks,
    "gate": verdicts.blocks,
    "aot": plain.blocks,
}
"""A bench that is not here gets a plain table."""


def section(source: Source) -> Section:
    """Everything of one file; what was refused comes last."""
    blocks = OF_BENCH.get(source.bench, plain.blocks)(source)
    return Section(_title(source), source.about, source.marks, [*blocks, *_refused(source)])


def _title(source: Source) -> str:
    settings = source.meta.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    parts = [text(settings.get(name) or source.summary.get(name)) for name in ("config", "dtype", "precision", "batch")]
    details = ", ".join(f"batch {part}" if part.isdigit() else part for part in parts if part)
    return f"{source.bench}, {details}" if details else source.bench


def _refused(source: Source) -> list[Block]:
    refused = [row for row in source.report.refused if isinstance(row, dict)]
    if not refused:
        return []
    rows = [
        (", ".join(str(value) for name, value in row.items() if name != "reason") or "-", word(row, "reason"))
        for row in refused
    ]
    return [Table(f"Refused, not timed: {len(rows)}", ("what", "why"), rows, left=2, folded=len(rows) > 3)]
