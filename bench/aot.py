"""`python -m bench ops --aot`: what the compilers make of every kernel for GPUs that are not here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench import counting, machine, show
from bench.results import write_json

SHAPE = (2, 1379, 1024)


def run(json: str | None) -> int:
    """Compiles every kernel for sm_80, sm_90 and sm_100 and prints registers, spills and access widths beside the bytes
    and operations of one call on [2, 1379, 1024]. Exit status 1 where a kernel spills."""
    from presto_kernels.testing.aot import compile_all

    with show.stage("compiling every kernel for sm_80, sm_90 and sm_100"):
        records = compile_all()
    rows = [_row(asdict(record)) for record in records]
    if json is not None:
        write_json(json, {"shape": SHAPE, "rows": rows})
    show.console.print(_table(rows))
    for reason in sorted({reason for row in rows for reason in row["skipped"]}):
        show.console.print(f"skipped: {reason}")
    spilling = [row for row in rows if row["spills"]]
    for row in spilling:
        show.console.print(f"[bold red]spills[/] {row['kernel']} sm_{row['arch']}: {row['spills']} bytes")
    return 1 if spilling else 0


def _row(record: dict[str, Any]) -> dict[str, Any]:
    return record
