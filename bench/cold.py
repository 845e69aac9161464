"""Cold starts in fresh processes (bench/cold_start.py), and the memory that one generation of each batch needs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import subprocesses
from bench.cold_start import STAGES
from bench.names import PRESTO
from bench.product_stages import Spec
from bench.results import Row, sample_fields

COLD = "cold"
CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


@dataclass
class ColdStarts:
    """What the processes told: `children` in order, `memory` in bytes by batch size."""

    children: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[int, dict[str, Any]] = field(default_factory=dict)

    def rows(self, batch: int) -> list[Row]:
        """A row a stage."""
        rows: list[Row] = []
        for stage in STAGES if self.children else ():
            times = np.array([child["ms"][stage] for child in self.children])
            row: Row = {"stage": stage, "batch": batch, "mode": COLD, "implementation": PRESTO}
            rows.append(row | sample_fields(times) | {"ms_range": [float(times.min()), float(times.max())]})
        return rows

    def caches(self) -> dict[str, Any]:
        """What was in the caches of compiled kernels."""
        return {
            "processes": len(self.children),
            "triton_cache": "a new folder for each process, empty at its start",
            "triton_files_compiled": [child["compiled"] for child in self.children],
        }


def start(
    spec: Spec,
    batches: Sequence[int],
    runs: int,
    found: ColdStarts,
    *,
    on_progress: Callable[[float], object] = lambda share: None,
    call: Callable[..., dict[str, Any]] = subprocesses.call,
) -> None:
    """`runs` cold starts of the first batch size, then one call of each other size, into `found` one by one.

    Each process has caches of its own for what Triton and inductor compile, empty at its start.
    """
    jobs = [(batches[0], 2)] * runs + [(batch, 1) for batch in batches[1:]]
    for index, (batch, calls) in enumerate(jobs):
        with tempfile.TemporaryDirectory(prefix="presto-cold-") as folder:
            caches = {name: str(Path(folder) / name) for name in CACHES}
            child = call("bench.cold_start:start", asdict(spec), batch, calls, environment=caches)
        found.memory.setdefault(batch, {name: child[name] for name in child if name.endswith("_bytes")})
        if calls == 2:
            found.children.append(child)
        on_progress((index + 1) / len(jobs))
