"""In a process that has done nothing before: import, load, first and second generation, and the memory they needed.

Nothing heavy is imported at the top: the import is part of what is timed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

STAGES = ("import", "load", "first call", "second call")


def start(fields: dict[str, Any], batch: int, calls: int) -> dict[str, Any]:
    """Milliseconds of `STAGES` (of the calls, the first `calls`), and bytes of memory.

    `fields`: those of a :class:`bench.product_stages.Spec`.  The interpreter's own start is not in it.
    """
    started = time.perf_counter()
    import presto_models  # noqa: F401

    times = [time.perf_counter() - started]
    import torch

    from bench import machine, meter, product_stages

    device = torch.device(fields["device"])
    started = time.perf_counter()
    made = product_stages.load(product_stages.Spec(**fields))
    machine.synchronize(device)
    times.append(time.perf_counter() - started)
    measured = meter.Meter(device)
    measured.reset()
    pipeline, resting = made.pipeline, measured.held()
    for _ in range(calls):
        started = time.perf_counter()
        made.generate(batch)
        machine.synchronize(device)
        times.append(time.perf_counter() - started)
    modules = (pipeline.dit, pipeline.autoencoder, *([pipeline.stereo] if pipeline.stereo is not None else []))
    return {
        "ms": dict(zip(STAGES, (1e3 * seconds for seconds in times), strict=False)),
        "weights_bytes": meter.parameter_bytes(*modules),
        "resting_bytes": resting,
        "peak_bytes": measured.peak(),
        "reserved_bytes": measured.reserved(),
        "compiled": _files(os.environ.get("TRITON_CACHE_DIR")),
    }


def _files(folder: str | None) -> int:
    """How much was compiled: files in the cache that was empty."""
    return sum(path.is_file() for path in Path(folder).rglob("*")) if folder else 0
