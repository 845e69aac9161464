"""Several runs of one bench on one machine: how each row's time went, with its interval.

Runs belong together when bench, device, threads and the settings that change what a row measures agree.  Version 1 did
not write its settings, so its files are held apart from later ones and told from each other by their commands.
"""

from __future__ import annotations

import html
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bench import show
from bench.names import is_ours
from bench.report.blocks import BAD, GOOD, QUIET, Block, Cell, Section, Table
from bench.report.cells import label
from bench.report.source import Source, interval, number, text
from bench.results import Row

SAME = (
    *("config", "checkpoint", "dtype", "precision", "steps", "guidance", "layers", "stage", "step", "length", "audio"),
    *("batch", "latents", "blocks", "chunk", "kept"),
)
"""Settings that a row's key does not say, where they are one value; of several dtypes, the keys say which."""

WIDTH, HEIGHT, MARGIN = 150, 30, 4


@dataclass(frozen=True)
class Run:
    """One row in one file."""

    source: Source
    row: Row
    ms: float
    ends: tuple[float, float] | None

    @property
    def words(self) -> str:
        ends = f" ({show.number(self.ends[0])} to {show.number(self.ends[1])})" if self.ends else ""
        when = " ".join(part for part in ((self.source.date or "")[:10], self.source.commit) if part)
        return f"{when or self.source.name}: {show.number(self.ms)} ms{ends}"


def sections(sources: Sequence[Source]) -> list[Section]:
    """A section for each group of runs that share a row."""
    groups: dict[Any, list[Source]] = defaultdict(list)
    for source in sources:
        groups[_group(source)].append(source)
    found = []
    for runs in groups.values():
        runs = sorted(runs, key=lambda source: source.date or "")
        of_key: dict[str, list[Run]] = defaultdict(list)
        for source in runs:
            for row in source.rows:
                took = number(row, "ms_p50")
                if took is not None:
                    of_key[str(row.get("key"))].append(Run(source, row, took, interval(row, "ms_p50")))
        lines = [each for each in of_key.values() if len({id(run.source) for run in each}) > 1]
        if lines:
            first, last = runs[0], runs[-1]
            about = f"{first.device} · {len(runs)} runs, {_when(first)} to {_when(last)}"
            marks = [f"{source.name}: {mark}" for source in runs for mark in source.marks]
            found.append(Section(f"{first.bench} over time", about, marks, _tables(lines)))
    return found


def sparkline(runs: Sequence[Run]) -> str:
    """A small line over runs, oldest first, equally spaced, from the least to the most time, an upright for each
    interval.
    """
    ends = [end for run in runs for end in (run.ms, *(run.ends or ()))]
    low, span = min(ends), max(ends) - min(ends) or 1.0
    step = (WIDTH - 2 * MARGIN) / max(len(runs) - 1, 1)

    def y(value: float) -> float:
        return round(HEIGHT - MARGIN - (value - low) / span * (HEIGHT - 2 * MARGIN), 1)

    places = [(round(MARGIN + index * step, 1), y(run.ms)) for index, run in enumerate(runs)]
    uprights = "".join(
        f'<line x1="{x}" x2="{x}" y1="{y(run.ends[0])}" y2="{y(run.ends[1])}"/>'
        for (x, _), run in zip(places, runs, strict=True)
        if run.ends
    )
    line = " ".join(f"{x},{at}" for x, at in places)
    last = f'<circle cx="{places[-1][0]}" cy="{places[-1][1]}" r="2.5"/>'
    words = html.escape("; ".join(run.words for run in runs))
    return (
        f'<svg class="spark" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{words}</title>'
        f'{uprights}<polyline points="{line}"/>{last}</svg>'
    )


def _tables(lines: list[list[Run]]) -> list[Block]:
    ours = [runs for runs in lines if is_ours(str(runs[0].row.get("implementation")))]
    others = [runs for runs in lines if not is_ours(str(runs[0].row.get("implementation")))]
    found: list[Block] = []
    if ours:
        found.append(_table("Ours", ours, short=True))
    if others:
        title = "What it is compared with: where this moves, the machine did" if ours else "Rows"
        found.append(_table(title, others, folded=bool(ours)))
    return found


def _table(title: str, lines: list[list[Run]], *, short: bool = False, folded: bool = False) -> Table:
    """The largest slowdown first."""
    rows = []
    for runs in sorted(lines, key=_change, reverse=True):
        times = (show.number(runs[0].ms), show.number(runs[-1].ms), _cell(runs))
        rows.append((label(runs[0].row, without=()), *times, str(len(runs)), Cell("", "", sparkline(runs))))
    return Table(title, ("row", "first ms", "last ms", "change", "runs", "line"), rows, short=short, folded=folded)


def _change(runs: Sequence[Run]) -> float:
    return runs[-1].ms / runs[0].ms - 1 if runs[0].ms else 0.0


def _cell(runs: Sequence[Run]) -> Cell:
    """In a tone where the first and last intervals do not meet; these runs were not paired, `bench gate`'s are."""
    first, last = runs[0].ends, runs[-1].ends
    tone = QUIET
    if first and last:
        tone = BAD if last[0] > first[1] else GOOD if last[1] < first[0] else QUIET
    return Cell(f"{100 * _change(runs):+.1f} %", tone)


def _group(source: Source) -> tuple[Any, ...]:
    settings = source.meta.get("settings")
    said = settings if isinstance(settings, dict) else _flags(source)
    same = tuple((name, str(said[name])) for name in SAME if name in said and not isinstance(said[name], (list, dict)))
    return source.bench, source.device, text(source.meta.get("threads")), source.version, same


def _flags(source: Source) -> dict[str, str]:
    """What the command said, of the settings that matter."""
    try:
        words = shlex.split(str(source.meta.get("command") or ""))
    except ValueError:
        return {}
    return {word[2:]: value for word, value in pairwise(words) if word.startswith("--") and word[2:] in SAME}


def _when(source: Source) -> str:
    return (source.date or source.name)[:10]
