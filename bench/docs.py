"""`python -m bench docs`: fills the tables of docs/ops/*.md from the code and from bench/results.

A page has two marks, each alone on a line, and the table stands between a mark and its end:

    <!-- backends -->  ...  <!-- end -->      implementations, and what each refuses, asked of the ops themselves
    <!-- measured -->  ...  <!-- end -->      bench/results/ops-*.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import show
from bench.cli import option
from bench.op_cases import OPS
from presto_kernels import backends

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "ops"
RESULTS = ROOT / "bench" / "results"
DEVICES = {"cpu": "CPU", "cuda": "CUDA", "triton": "CUDA", "sdpa": "any", "flash": "CUDA", "reference": "any"}


@dataclass(frozen=True)
class DocsOptions:
    """Fills the tables of docs/ops from the code and from bench/results."""

    check: bool = option(False, "change nothing; exit status 1 if a page is not what would be written")


def run(options: DocsOptions) -> int:
    stale = []
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text()
        wanted = fill(text, page.stem)
        if wanted == text:
            continue
        stale.append(page)
        if not options.check:
            beside = page.with_suffix(".part")
            beside.write_text(wanted)
            beside.replace(page)
    verb = "out of date" if options.check else "written"
    for page in stale:
        show.console.print(f"{page.relative_to(ROOT)}: {verb}")
    return 1 if stale and options.check else 0


def fill(text: str, family: str) -> str:
    """The page with both tables as they are now."""
    for mark, table in (("backends", backend_table), ("measured", measured_table)):
        block = f"<!-- {mark} -->\n\n{table(family)}\n\n<!-- end -->"
        text = re.sub(rf"<!-- {mark} -->(?:.*?<!-- end -->)?", lambda _, block=block: block, text, count=1, flags=re.S)
    return text


# What is asked of every implementation of an op, by family: arguments that are unusual, on tensors that hold no data.


def _empty(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def _seam(dim: int) -> dict[str, Any]:
    return {"x": _empty(2, 9, dim), "scale": None, "shift": None}


def _heads(dim: int, *, keys: int = 9, kv: int = 4) -> dict[str, Any]:
    return {"q": _empty(2, 9, 4, dim), "k": _empty(2, keys, kv, dim), "v": _empty(2, keys, kv, dim)}


def _lengths() -> Tensor:
    return torch.empty(2, dtype=torch.int32, device="meta")


Probe = tuple[str, Callable[[], dict[str, Any]]]
PROBES: dict[str, tuple[Probe, ...]] = {
    "adaln_modulate": (("D = 8193", lambda: _seam(8193)),),
    "gated_residual": (("D = 8193", lambda: {"x": _empty(2, 9, 8193), "branch": _empty(2, 9, 8193), "gate": None}),),
    "gated_residual_adaln": (("D = 8193", lambda: _seam(8193) | {"branch": _empty(2, 9, 8193), "gate": None}),),
    "qk_norm_rope": tuple(
        (f"Dh = {d}", lambda d=d: {"q": _empty(2, 9, 4, d), "k": None, "cos": None, "sin": None})
        for d in (40, 256, 1000)
    ),
    "attention": (
        ("a window", lambda: _heads(64) | {"window": (4, 4)}),
        ("key lengths", lambda: _heads(64) | {"key_lengths": _lengths()}),
        ("Nq ≠ Nk", lambda: _heads(64, keys=5)),
        ("grouped heads", lambda: _heads(64, kv=2)),
        ("Dh = 40", lambda: _heads(40)),
        ("Dh = 256", lambda: _heads(256)),
    ),
}


def family_ops(family: str) -> list[str]:
    """The public ops of presto_kernels/ops/<family>, in the order they were registered."""
    return [name for name, op in backends._OPS.items() if op.check.__module__ == f"presto_kernels.ops.{family}.api"]


def backend_table(family: str) -> str:
    """One row an op and implementation: where it runs, in which dtypes, and what of the probes it refuses."""
    lines = ["| op | implementation | runs on | dtypes | refuses |", "|---|---|---|---|---|"]
    for name in family_ops(family):
        op = backends._OPS[name]
        for backend in op.backends:
            refused = [
                f"{label} ({reason})" for label, make in PROBES.get(name, ()) if (reason := _limit(op, backend, make()))
            ]
            dtypes = "fp32, bf16, fp16" + (", fp64" if backend == "reference" else "")
            lines.append(f"| `{name}` | {backend} | {DEVICES[backend]} | {dtypes} | {'; '.join(refused) or '—'} |")
    return "\n".join(lines)


def _limit(op: backends.Op, backend: str, arguments: dict[str, Any]) -> str | None:
    return None if backend == "reference" else op.limits(backend, *op.check(**arguments))


def measured_table(family: str) -> str:
    """What `auto` ran in bench/results/ops-*.json, over eager, torch.compile and a copy of the same bytes."""
    names = [name for name, op in OPS.items() if (op.public or name) in family_ops(family)]
    lines = []
    for file in sorted(RESULTS.glob("ops-*.json")):
        content = json.loads(file.read_text())
        rows = [row for row in content["rows"] if row["op"] in names and row["auto"] and row["mode"] != "call"]
        rows = rows or [row for row in content["rows"] if row["op"] in names and row["auto"]]
        if not rows:
            continue
        lines += [
            f"{content['meta']['device']}, torch {content['meta']['torch']} (`{content['meta']['command']}`):",
            "",
        ]
        lines += [
            "| op | shape | dtype | | ran | over eager | over compile | of the floor |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [_measured_row(row) for row in rows]
        lines.append("")
    return "\n".join(lines).strip() or "Not measured yet."


def _measured_row(row: dict[str, Any]) -> str:
    shape = "x".join(map(str, row["shape"]))
    ran = row["implementation"].removeprefix("presto ")
    ratios = " | ".join(show.times(row.get(f"{side}_over_this")) or "refused" for side in ("eager", "compile"))
    share = show.percent(row.get("share_of_floor")) or ""
    return f"| {row['op']} | {shape} | {row['dtype']} | {row['direction']} | {ran} | {ratios} | {share} |"
