"""`python -m bench ops --aot`: what the compilers make of every kernel for GPUs that are not here, beside what it must
do.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

from bench import counting, machine, show
from bench.op_cases import OPS
from bench.results import Report, Row
from presto_kernels.testing.aot import ARCHS, AotRecord, compile_all

BATCH, TOKENS, WIDTH = 2, 1379, 1024


def run(json: str | None) -> int:
    """Compiles every kernel for sm_80, sm_90 and sm_100, prints the table and what was skipped, and why."""
    with show.rounds("compiling for " + ", ".join(f"sm_{arch}" for arch in ARCHS)) as on_progress:
        result = compile_all(progress=lambda done, total, _: on_progress(done / total))
    rows = [record_row(record) for record in result.records]
    if json is not None:
        meta = machine.meta(torch.device("cpu")) | {"shape": [BATCH, TOKENS, WIDTH], "skipped": result.skipped}
        Report(meta, rows, bench="aot").save(json)
    for implementation in ("cuda", "triton"):
        of_it = [row for row in rows if row["implementation"] == implementation and _is_shown(row)]
        if of_it:
            show.console.print(kernel_table(implementation, of_it))
    show.console.print(
        f"MB, MFLOP: the fewest one call on [{BATCH}, {TOKENS}, D] can move and do; CUDA kernels serve the whole family"
        " and show gated_residual_adaln. 16 B: loads + stores of 16 bytes or wider in the machine code, the fewest of"
        " the targets; narrower: the most of them (row statistics, partial sums, a path for odd layouts).",
        style="dim",
    )
    hidden = sum(not _is_shown(row) for row in rows)
    show.console.print(f"{hidden} more, of fp16 and mixed dtypes, are in the JSON; none of them spills", style="dim")
    for reason in result.skipped:
        show.console.print(f"skipped: {reason}", markup=False)
    return 0


def record_row(record: AotRecord) -> Row:
    """A record joined with the counted bytes and operations of the op it computes."""
    count = _count(record)
    return {**asdict(record), "bytes": count and count.bytes, "flops": count and count.flops}


def _is_shown(row: Row) -> bool:
    """fp16 and mixed dtypes repeat the others: they are in the JSON, and here only where they spill."""
    return row["dtype"] in ("bf16", "fp32", "any") or row["spills"] > 0


def _count(record: AotRecord) -> counting.Count | None:
    """What the op must do, for the AdaLN family; None for kernels that only finish sums."""
    name = record.variant.split(",")[0] if record.implementation == "triton" else "gated_residual_adaln"
    if not record.kernel.startswith("seam_"):
        return None
    if "forward" in record.kernel:
        formula = OPS[name].forward
    elif record.kernel.endswith(("rows", "columns")):
        formula = OPS[name].backward
    else:
        return None
    assert formula is not None
    width = re.search(r"D=(\d+)", record.variant)
    dtype = machine.DTYPES.get(record.dtype.split("/")[0], machine.DTYPES["bf16"])
    return formula((BATCH, TOKENS, int(width[1]) if width else WIDTH), dtype.itemsize)


def kernel_table(implementation: str, rows: Sequence[Row]) -> Table:
    """One line a kernel and dtype, its targets side by side."""
    kernels: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        kernels[row["kernel"], row["variant"], row["dtype"]].append(row)
    targets = "/".join(str(arch) for arch in sorted({row["arch"] for row in rows}))
    columns = ("kernel", f"regs {targets}", "spills", "shared", "16 B", "narrower", "matrix", "MB", "MFLOP")
    cells = []
    for (kernel, variant, dtype), of_it in kernels.items():
        of_it = sorted(of_it, key=lambda row: row["arch"])

        def pick(choose: Any, *fields: str, of_it: list[Row] = of_it) -> str:
            return "+".join(str(choose(row[field] for row in of_it)) for field in fields)

        cells.append(
            (
                f"{kernel.removeprefix('seam_')} {dtype} {variant}".strip(),
                "/".join(str(row["registers"]) for row in of_it),
                pick(max, "spills"),
                pick(max, "shared"),
                pick(min, "loads16", "stores16"),
                pick(max, "loads_other", "stores_other"),
                "/".join(str(row["hmma"] + row["hgmma"] + row["tcgen05"]) for row in of_it),
                show.number(of_it[0]["bytes"] / 1e6) if of_it[0]["bytes"] else None,
                show.number(of_it[0]["flops"] / 1e6) if of_it[0]["flops"] else None,
            )
        )
    return show.table(f"{implementation} kernels", columns, cells, wrap=1)
