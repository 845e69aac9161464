"""What a reader should know first: verdicts of gates, targets met or missed, what was refused, doubtful figures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.report.blocks import BAD, GOOD, QUIET, WARN, Note
from bench.report.sections import verdicts
from bench.report.source import Source, text


def first(sources: Sequence[Source]) -> list[Note]:
    """Verdicts, then targets, then what was refused."""
    judged = [source for source in sources if source.bench in ("compare", "gate")]
    notes = []
    for source in judged:
        words, tone = verdicts.verdict(source)
        notes.append(Note(f"{words}, on {source.device}", tone))
    for source in sources:
        notes += _targets(source)
    refused = [f"{len(source.report.refused)} in {source.name} ({_who(source)})" for source in sources if _who(source)]
    if refused:
        notes.append(Note(f"refused and not timed: {', '.join(refused)}", WARN))
    if not judged:
        notes.append(Note("No gate and no comparison among these files: nothing here passes or fails.", QUIET))
    return notes


def marks(sources: Sequence[Source]) -> list[Note]:
    """What makes figures doubtful, in which files of which device; the sections say it whole."""
    files: dict[tuple[str, str], list[str]] = {}
    for source in sources:
        for mark in source.marks:
            kind = re.split(r":| \d", mark)[0]  # "busy: load average 2", "load 2.0: ..."
            files.setdefault((kind, source.device), []).append(source.name)
    return [Note(f"{kind}, on {device}: {', '.join(names)}", WARN) for (kind, device), names in files.items()]


def _who(source: Source) -> str:
    """The implementations that were refused."""
    rows = [row for row in source.report.refused if isinstance(row, dict)]
    return ", ".join(dict.fromkeys(text(row.get("implementation")) or "-" for row in rows))


def _targets(source: Source) -> list[Note]:
    stated = source.summary.get("targets")
    stated = [each for each in stated if isinstance(each, dict)] if isinstance(stated, list) else []
    by_verdict = {
        verdict: [
            f"{text(each.get('name'))} {text(each.get('ms'))} ms" for each in stated if each.get("verdict") == verdict
        ]
        for verdict in ("met", "missed")
    }
    said = [f"{verdict}: {', '.join(names)}" for verdict, names in by_verdict.items() if names]
    if not said:
        return []
    return [Note(f"targets on {source.device}: {'; '.join(said)}", BAD if by_verdict["missed"] else GOOD)]
