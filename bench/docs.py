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
from bench.op_timers import CALL, GRAPH
from presto_kernels import backends

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "ops"
RESULTS = ROOT / "bench" / "results"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
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


def _gated(dim: int) -> dict[str, Any]:
    return {"x": _empty(2, 9, dim), "branch": _empty(2, 9, dim), "gate": None}


def _qk(dim: int, **options: Any) -> dict[str, Any]:
    return {"q": _empty(2, 9, 4, dim), "k": None, "cos": None, "sin": None} | options


def _denoise() -> dict[str, Any]:
    return {"model_output": _empty(2, 9, 8), "x": _empty(2, 9, 8), "sigma": _empty(2)}


Probe = tuple[str, Callable[[], dict[str, Any]]]
# The first of each op is an ordinary call, and shows the dtypes.
PROBES: dict[str, tuple[Probe, ...]] = {
    "adaln_modulate": (("", lambda: _seam(64)), ("D = 8193", lambda: _seam(8193))),
    "gated_residual": (("", lambda: _gated(64)), ("D = 8193", lambda: _gated(8193))),
    "gated_residual_adaln": (
        ("", lambda: _seam(64) | _gated(64)),
        ("D = 8193", lambda: _seam(8193) | _gated(8193)),
    ),
    "qk_norm_rope": (
        ("", lambda: _qk(64)),
        ("Dh = 40", lambda: _qk(40)),
        ("Dh = 257", lambda: _qk(257)),
        ("Dh = 2048", lambda: _qk(2048)),
        ("dyt", lambda: _qk(64, norm="dyt", q_alpha=_empty(1))),
    ),
    "swiglu": (("", lambda: {"x": _empty(2, 9, 64)}), ("D = 100001", lambda: {"x": _empty(2, 9, 200002)})),
    "geglu": (("", lambda: {"x": _empty(2, 9, 64)}), ("D = 100001", lambda: {"x": _empty(2, 9, 200002)})),
    "singlu": (("", lambda: {"x": _empty(2, 9, 64)}), ("D = 100001", lambda: {"x": _empty(2, 9, 200002)})),
    "snake": (
        ("", lambda: {"x": _empty(2, 8, 64), "alpha": _empty(8), "beta": _empty(8)}),
        ("T = 1", lambda: {"x": _empty(2, 8, 1), "alpha": _empty(8), "beta": _empty(8)}),
    ),
    "edm_denoise": (("", _denoise),),
    "renoise": (("", lambda: {"x0": _empty(2, 9, 8), "sigma": 1.0, "seed": 0, "offset": 0}),),
    "attention": (
        ("", lambda: _heads(64)),
        ("a window", lambda: _heads(64) | {"window": (4, 4)}),
        ("key lengths", lambda: _heads(64) | {"key_lengths": _lengths()}),
        ("Nq ≠ Nk", lambda: _heads(64, keys=5)),
        ("grouped heads", lambda: _heads(64, kv=2)),
        ("Dh = 40", lambda: _heads(40)),
        ("Dh = 65", lambda: _heads(65)),
        ("Dh = 256", lambda: _heads(256)),
    ),
}


def family_ops(family: str) -> list[str]:
    """The public ops of presto_kernels/ops/<family>, in the order they were registered."""
    return [name for name, op in backends._OPS.items() if op.bucket.__module__ == f"presto_kernels.ops.{family}.api"]


def backend_table(family: str) -> str:
    """One row an op and implementation: where it runs, in which dtypes, and what of the probes it refuses."""
    lines = ["| op | implementation | runs on | dtypes | refuses |", "|---|---|---|---|---|"]
    for name in family_ops(family):
        op, probes = backends._OPS[name], PROBES[name]
        for backend in op.backends:
            usual = probes[0][1]()
            dtypes = [
                label for label, dtype in DTYPES.items() if _limit(op, backend, _cast(usual, dtype), dtype) is None
            ]
            refused = [f"{label} ({reason})" for label, make in probes[1:] if (reason := _limit(op, backend, make()))]
            lines.append(
                f"| `{name}` | {backend} | {DEVICES[backend]} | {', '.join(dtypes)} | {'; '.join(refused) or '—'} |"
            )
    return "\n".join(lines)


def _cast(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
        for name, value in arguments.items()
    }


def _limit(op: backends.Op, backend: str, arguments: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> str | None:
    if backend == "reference":
        return None
    if dtype == torch.float64:
        return "float64 runs only on the reference"
    tensors, options = op.check(**arguments)
    try:
        return op.limits(backend, tensors, options)
    except (RuntimeError, AssertionError, ValueError):  # it asks a GPU, so nothing in the call itself forbids it
        return None


def measured_table(family: str) -> str:
    """What `auto` ran in bench/results/ops-*.json, over eager, torch.compile and a copy of the same bytes."""
    names = [name for name, op in OPS.items() if (op.public or name) in family_ops(family)]
    lines = []
    for file in sorted(RESULTS.glob("ops-*.json")):
        content = json.loads(file.read_text())
        rows = [row for row in content["rows"] if row["op"] in names and row["auto"] and row["mode"] == GRAPH]
        rows = rows or [row for row in content["rows"] if row["op"] in names and row["auto"] and row["mode"] == CALL]
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
