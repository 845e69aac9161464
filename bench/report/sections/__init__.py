"""What each bench's file says on the page: a function from the file to blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from bench.report.blocks import WARN, Block, Cell, Note, Section, Table
from bench.report.cells import word
from bench.report.sections import ablate, latency, memory, ops, plain, scaling, steps, training, verdicts
from bench.report.source import Source

OF_BENCH: dict[str, Callable[[Source], list[Block]]] = {
    "gate": verdicts.blocks,
    "compare": verdicts.blocks,
    "latency": latency.blocks,
    "steps": steps.blocks,
    "ops": ops.blocks,
    "scaling": scaling.blocks,
    "ablate": ablate.blocks,
    "memory": memory.blocks,
    "decode": training.blocks,
    "train": training.blocks,
    "distill": training.blocks,
    "aot": plain.blocks,
}
"""In the order of the page; a bench that is not here comes last and gets a plain table."""


def sections(sources: Sequence[Source]) -> list[Section]:
    """A section a file; those of one title have the file's name in it."""
    order = list(OF_BENCH)
    ranked = sorted(sources, key=lambda each: order.index(each.bench) if each.bench in OF_BENCH else len(order))
    titles = Counter(map(_title, ranked))
    return [
        _section(each, f"{_title(each)} ({each.name})" if titles[_title(each)] > 1 else _title(each)) for each in ranked
    ]


def _section(source: Source, title: str) -> Section:
    """Everything of one file; what was refused comes last."""
    blocks = OF_BENCH.get(source.bench, plain.blocks)(source)
    return Section(title, source.about, source.marks, [*_warnings(source), *blocks, *_refused(source)])


def _title(source: Source) -> str:
    settings = source.meta.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    names = ("checkpoint" if settings.get("checkpoint") else "config", "dtype", "precision", "batch")
    found = [settings.get(name) or source.summary.get(name) for name in names]
    parts = [str(each) for each in found if isinstance(each, (str, int))]
    details = ", ".join(f"batch {part}" if part.isdigit() else part for part in parts if part)
    return f"{source.bench}, {details}" if details else source.bench


def _warnings(source: Source) -> list[Block]:
    """What the bench itself says its figures cannot tell."""
    said = source.summary.get("warnings")
    said = [str(each).removeprefix("warning: ") for each in said] if isinstance(said, list) else []
    if len(said) <= 3:
        return [Note(each, WARN) for each in said]
    title = f"What these figures cannot tell: {len(said)} warnings"
    return [Table(title, ("warning",), [(Cell(each, WARN),) for each in said], folded=True)]


def _refused(source: Source) -> list[Block]:
    refused = [row for row in source.report.refused if isinstance(row, dict)]
    if not refused:
        return []
    rows = [
        (", ".join(str(value) for name, value in row.items() if name != "reason") or "-", word(row, "reason"))
        for row in refused
    ]
    return [Table(f"Refused, not timed: {len(rows)}", ("what", "why"), rows, left=2, folded=len(rows) > 3)]
