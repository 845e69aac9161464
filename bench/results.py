"""A result file: what was measured, on what, and every sample of it (schema: bench/schema, docs/bench/results.md).

`meta` is the machine and the command, a row one measurement, `summary` the few numbers people quote, `refused` what was
not timed and why.  Times are milliseconds.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import machine, measure, show
from bench.measure import Ratio

SCHEMA_VERSION = 2
Row = dict[str, Any]

IDENTITY = (
    "subject",
    "method",
    "series",
    "op",
    "kernel",
    "variant",
    "arch",
    "shape",
    "dtype",
    "direction",
    "mode",
    "ablation",
    "stage",
    "part",
    "axis",
    "value",
    "batch",
    "latents",
    "seed",
    "turn",
    "step",
    "kind",
    "kept_share",
    "implementation",
)
"""The fields that say what a row measured; its `key` is made of those it has, in this order."""

NOT_SETTINGS = ("json", "rounds", "seconds", "plot", "kernels", "trace")
"""Options that do not change what is measured, only for how long and where it is written."""


@dataclass
class Report:
    """What a bench run found. `save` may be called after every new row: readers never see half a file."""

    meta: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    refused: list[Row] = field(default_factory=list)
    bench: str = "unnamed"

    def refuse(self, reason: Exception, **what: Any) -> None:
        """Records an implementation that was not timed, and why."""
        lines = str(reason).strip().splitlines() or [""]
        self.refused.append({**what, "reason": f"{type(reason).__name__}: {lines[0]}"})

    def save(self, path: str | Path | None) -> None:
        """Writes the file; a `ValueError` where two rows would have the same key."""
        if path is None:
            return
        rows = [{"key": row_key(row), **row} for row in self.rows]
        twice = [key for key, times in Counter(row["key"] for row in rows).items() if times > 1]
        if twice:
            raise ValueError(f"rows must differ in one of {', '.join(IDENTITY)}; two are {twice[0]!r}")
        content = {"schema_version": SCHEMA_VERSION, "bench": self.bench, "meta": self.meta, "rows": rows}
        write_text(path, _row_a_line(content | {"summary": self.summary, "refused": self.refused}))


def start(bench: str, options: Any, device: torch.device, dtypes: Sequence[str]) -> Report:
    """A report with the machine, its measured ceilings for these dtypes and the command's settings; shows the first."""
    with show.stage("copy and matmul ceilings"):
        meta = machine.meta(device, machine.measure_ceilings(device, dtypes))
    meta["settings"] = {name: value for name, value in asdict(options).items() if name not in NOT_SETTINGS}
    meta["order_seed"] = measure.ORDER_SEED
    show.console.print(show.machine_line(meta))
    return Report(meta, bench=bench)


def row_key(row: Mapping[str, Any]) -> str:
    """What a row measured, as one string: "swiglu/1x1379x2816/bf16/forward/call/presto cpu"."""
    return "/".join(_word(row[name]) for name in IDENTITY if row.get(name) is not None)


def timing_fields(samples: measure.Samples, name: str, part: int | None = None) -> dict[str, Any]:
    """A row's times: percentiles, the median's and the p99's 95 % interval, and every round's sample in order.

    An interval is None where there are too few rounds for one: the p99's needs 368.
    """
    return sample_fields(samples.ms(name, part))


def sample_fields(milliseconds: np.ndarray) -> dict[str, Any]:
    """:func:`timing_fields` of one time a round."""
    middle = measure.median_interval(milliseconds)
    percentiles = {f"ms_p{p}": float(np.percentile(milliseconds, p)) if middle else None for p in (50, 95, 99)}
    return {
        "rounds": len(milliseconds),
        **percentiles,
        "ms_p50_interval": [middle.low, middle.high] if middle else None,
        "ms_p99_interval": measure.percentile_interval(milliseconds, 99),
        "samples_ms": [float(f"{value:.6g}") for value in milliseconds],
    }


def ratio_fields(name: str, ratio: Ratio | None) -> dict[str, Any]:
    """A paired ratio for a summary: `name` its median, `name_interval` the 95 % interval; nothing for None."""
    if ratio is None:
        return {}
    return {name: round(ratio.median, 4), f"{name}_interval": [round(ratio.low, 4), round(ratio.high, 4)]}


def write_json(path: str | Path, payload: Any) -> None:
    """Writes JSON beside `path` and renames it into place, so that a stop leaves the old file or the new one."""
    write_text(path, json.dumps(payload, indent=1, allow_nan=False))


def write_text(path: str | Path, text: str) -> None:
    """Writes text beside `path` and renames it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def _row_a_line(content: dict[str, Any]) -> str:
    """JSON with a line for every row, so that a file with thousands of samples can be read and its changes seen."""
    rows = ",\n".join("  " + json.dumps(row, allow_nan=False) for row in content["rows"])
    parts = [
        f' "{name}": ' + (f"[\n{rows}\n ]" if name == "rows" else json.dumps(value, allow_nan=False))
        for name, value in content.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}"


def _word(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
