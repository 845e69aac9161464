"""What a comparison came to, in rows, in a table, in an exit status."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from bench import show
from bench.gate.rule import Outcome
from bench.results import Report, Row

FINE, SLOWER, CANNOT_COMPARE, REFUSED, STOPPED = 0, 1, 3, 4, 130
"""Exit statuses; 2 is a bad option."""


def verdict_row(
    subject: str,
    verdict: str,
    outcome: Outcome | None = None,
    launches: Sequence[Mapping[str, float]] = (),
    note: str | None = None,
) -> Row:
    """A row of a gate's or a comparison's file.

    `change` is new / old - 1; `p_value` is the one that was held against alpha, corrected for many rows; `launches` has
    the milliseconds of each side in every launch.
    """
    row: Row = {"subject": subject, "verdict": verdict}
    if note is not None:
        row["note"] = note
    if outcome is None:
        return row
    change = outcome.change
    row |= {
        "change": round(change.change, 5),
        "change_interval": [round(change.low, 5), round(change.high, 5) if math.isfinite(change.high) else None],
        "reading": outcome.reading,
        "p_value": float(f"{outcome.p_value:.3g}"),
        "confirmed": outcome.confirmed,
    }
    if launches:
        row["launches"] = [{name: float(f"{value:.6g}") for name, value in launch.items()} for launch in launches]
    return row


def verdict_table(report: Report) -> Table:
    """Rows by falling change; what was not compared last."""
    columns = ("what", "verdict", "change", "95 %", "p, corrected", "launches")
    cells = []
    for row in sorted(report.rows, key=lambda row: -row.get("change", -math.inf)):
        low, high = row.get("change_interval", (None, None))
        interval = None if low is None else f"{100 * low:+.1f} to " + ("?" if high is None else f"{100 * high:+.1f} %")
        cells.append(
            (
                row["subject"],
                row["verdict"],
                f"{100 * row['change']:+.1f} %" if "change" in row else None,
                interval,
                f"{row['p_value']:.2g}" if "p_value" in row else None,
                len(row["launches"]) if "launches" in row else None,
            )
        )
    return show.table("new over old", columns, cells, left=2, wrap=1)


def verdict_line(report: Report) -> str:
    """One line: what is slower, or that nothing is, and what could not be told."""
    found: dict[str, list[str]] = {}
    for row in report.rows:
        found.setdefault(row["verdict"], []).append(row["subject"])
    above = f"{100 * report.summary['fail_above']:g} %"
    compared = any("change" in row for row in report.rows)
    parts = [f"nothing is slower by more than {above}" if compared else "nothing was compared"]
    if "slower" in found:
        parts = [f"SLOWER by more than {above}: {', '.join(found['slower'])}"]
    parts += [
        f"{text}: {', '.join(found[verdict])}"
        for verdict, text in (("inconclusive", "too noisy to tell"), ("new", "only here"), ("gone", "no longer runs"))
        if verdict in found
    ]
    return "; ".join(parts)
