"""Measurements behind ``auto``, shipped as data: one JSON file a device, written by ``python -m bench tune``.

    {"device": {"type": "cpu", "name": "AMD EPYC ...", "family": "avx512bf16"},
     "measured": {"torch": ..., "commit": ..., "command": ...},
     "rankings": {op: {"bf16 <kind>": [{"size": 1412096, "ms": {"cpu": 1.2, "reference": 4.1}}, ...]}}}

``family`` is the instruction set of a CPU, "sm_90" and the like of a GPU.  A machine uses the file of its own name,
else one of its family, and :func:`presto_kernels.explain` says which device it was.  A call goes by the measured size
nearest to its own in ratio.
"""

from __future__ import annotations

import functools
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch

from presto_kernels import _library

FOLDER = Path(__file__).parent
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

# A size, and what was measured at it: implementations best first, and the reason in words.
_Entry = tuple[int, tuple[str, ...], str]


@functools.cache
def processor_name() -> str:
    """The CPU's name as Linux gives it, else what Python knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_identity(device: torch.device) -> dict[str, str]:
    """{"type", "name", "family"} of a device, as the files have it."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return {"type": "cuda", "name": torch.cuda.get_device_name(device), "family": f"sm_{major}{minor}"}
    return {"type": device.type, "name": processor_name(), "family": _library.instruction_set}


def read(file: Path) -> tuple[str, dict[str, tuple[_Entry, ...]]]:
    """(device name, {"op dtype kind": entries by size}) of one file."""
    content = json.loads(file.read_text())
    table = {}
    for op, kinds in content["rankings"].items():
        for kind, rows in kinds.items():
            table[f"{op} {kind}"] = tuple(_entry(row) for row in sorted(rows, key=lambda row: row["size"]))
    return content["device"]["name"], table


def _entry(row: dict[str, Any]) -> _Entry:
    order = sorted(row["ms"], key=row["ms"].__getitem__)
    times = ", ".join(f"{backend} {row['ms'][backend]:.3g} ms" for backend in order)
    return row["size"], tuple(order), f"measured at size {row['size']}: {times}"


@functools.cache
def _files() -> tuple[tuple[dict[str, str], Path], ...]:
    return tuple((json.loads(file.read_text())["device"], file) for file in sorted(FOLDER.glob("*.json")))


@functools.cache
def _table(kind: str, index: int) -> tuple[str, dict[str, tuple[_Entry, ...]]]:
    """What was measured for this machine's device, or for one of its family; empty where nothing was."""
    this = device_identity(torch.device(kind, index))
    for key in ("name", "family"):
        for device, file in _files():
            if device["type"] == kind and device[key] == this[key]:
                return read(file)
    return "", {}


def _entries(op: str, kind: str, index: int, dtype: str, what: str) -> tuple[str, tuple[_Entry, ...]]:
    name, table = _table(kind, index)
    return name, table.get(f"{op} {dtype} {what}".rstrip(), ())


# What torch.compiler.assume_constant_result sets: the decorator itself imports the compiler, which takes a second.
_entries._dynamo_marked_constant = True  # type: ignore[attr-defined]


def lookup(
    op: str, device: torch.device, dtype: torch.dtype, kind: str, size: int | None
) -> tuple[tuple[str, ...], str, str] | None:
    """(implementations best first, reason, device measured on) for a call, or None where nothing was measured.

    ``size`` None: the largest that was measured.
    """
    if device.type not in ("cpu", "cuda") or dtype not in DTYPES:
        return None
    call = (op, device.type, device.index or 0, DTYPES[dtype], kind)
    if size is not None:
        return _nearest(*call, size)
    name, entries = _entries(*call)
    return (*entries[-1][1:], name) if entries else None


@functools.lru_cache(maxsize=4096)
def _nearest(op: str, device: str, index: int, dtype: str, kind: str, size: int):
    """What :func:`lookup` says for a size: remembered, because every call of every op asks."""
    name, entries = _entries(op, device, index, dtype, kind)
    if not entries:
        return None
    return (*min(entries, key=lambda e: abs(math.log(max(e[0], 1) / max(size, 1))))[1:], name)


def forget() -> None:
    """Read the files anew at the next call: some were written since."""
    for remembered in (_files, _table, _nearest):
        remembered.cache_clear()
