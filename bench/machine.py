"""The machine a number belongs to: what it is (`meta`), and the two ceilings measured on it (`measure_ceilings`).

A share of a datasheet's bandwidth says nothing about the card at hand, so the ceilings are a large copy (bytes read
plus bytes written) and a large matrix product per dtype, both through PyTorch, on random data, the best of several
runs.
"""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.cli import BadOption

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Ceilings:
    """What this machine can do at best: GB/s of a copy (read + write) and TFLOP/s of a matrix product by dtype name."""

    copy_gbs: float
    matmul_tflops: dict[str, float]


def pick_device(name: str | None) -> torch.device:
    """`cpu`, `cuda`, or (None) cuda where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise BadOption("--device cuda: this PyTorch sees no CUDA device; use --device cpu")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def meta(device: torch.device, ceilings: Ceilings | None = None) -> dict[str, Any]:
    """Everything needed to know what a number means and to measure it again."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    return {
        "device": device_name(device),
        "device_type": device.type,
        "gpu": _gpu(device) if device.type == "cuda" else None,
        **(_gpu_state(device) if device.type == "cuda" else {"driver": None, "clocks": _cpu_clock()}),
        "load_average": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": triton_version,
        "python": platform.python_version(),
        "commit": _commit(),
        # Files of this machine alone by their names: results are read on others.
        "command": shlex.join(["python", "-m", "bench", *(_relative(word) for word in sys.argv[1:])]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "ceilings": None if ceilings is None else asdict(ceilings),
    }


def _relative(word: str) -> str:
    return Path(word).name if Path(word).is_absolute() else word


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = _cpu_info("model name") or platform.processor() or platform.machine()
    flags = (_cpu_info("flags") or "").split()
    notable = [shown for flag, shown in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 BF16")) if flag in flags]
    if not notable:
        notable = [shown for flag, shown in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags][:1]
    return f"{model}, {os.cpu_count()} cores" + (f", {', '.join(notable)}" if notable else "")


def last_level_cache() -> int | None:
    """Bytes of all this machine's last-level caches together; None where the system does not tell."""
    found: dict[tuple[int, str], int] = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        try:
            level, size, cpus = ((index / name).read_text().strip() for name in ("level", "size", "shared_cpu_list"))
        except OSError:
            continue
        if size.endswith("K"):
            found[int(level), cpus] = int(size[:-1]) * 1024
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last) or None


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_ceilings(device: torch.device, dtypes: Sequence[str]) -> Ceilings:
    """Times the copy and the products; a second or two on a CPU."""
    cuda = device.type == "cuda"
    source = torch.randn(2**28 if cuda else 2**25, device=device)
    target = torch.empty_like(source)
    copy_gbs = 2 * source.nbytes / _best_seconds(partial(target.copy_, source), device) / 1e9
    del source, target
    matmul_tflops = {}
    for name in dtypes:
        size = 8192 if cuda else 2048
        a, b = (torch.randn(size, size, device=device, dtype=DTYPES[name]) for _ in "ab")
        matmul_tflops[name] = 2 * size**3 / _best_seconds(partial(torch.mm, a, b), device) / 1e12
    return Ceilings(copy_gbs, matmul_tflops)


def _best_seconds(function: Callable[[], object], device: torch.device, runs: int = 8) -> float:
    best = float("inf")
    for _ in range(runs + 2):
        synchronize(device)
        started = time.perf_counter()
        function()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "compute_capability": f"{properties.major}.{properties.minor}",
        "sm_count": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
    }


def _gpu_state(device: torch.device) -> dict[str, Any]:
    fields = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit")
    values = _run("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", f"--id={device.index or 0}")
    if values is None:
        return {"driver": None, "clocks": None}
    driver, *clocks = [value.strip() for value in values.split(",")]
    return {"driver": driver, "clocks": dict(zip(fields[1:], clocks, strict=True))}


def _cpu_clock() -> dict[str, str] | None:
    megahertz = _cpu_info("cpu MHz")
    return None if megahertz is None else {"cpu": f"{float(megahertz):.0f} MHz"}


def _cpu_info(key: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key), None)


def _commit() -> str | None:
    root = str(Path(__file__).parent)
    commit = _run("git", "-C", root, "rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+dirty" if _run("git", "-C", root, "status", "--porcelain") else "")


def _run(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
