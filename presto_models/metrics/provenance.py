"""What a result says of how it came about, so that it can be read, and made again, on another machine."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from pathlib import Path
from typing import Any

import torch


def digest(values: Any) -> str:
    """A key for plain JSON: the same for the same values, on every machine."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def reason(error: Exception) -> str:
    """What it says, with files by their names."""
    return re.sub(r"/(?:[^\s'\"/]+/)+", "", str(error))


def relative(path: str) -> str:
    """The name of a file, for an absolute path."""
    return Path(path).name if Path(path).is_absolute() else path


def device_name(device: torch.device) -> str:
    """The GPU, or the processor and how many threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def read_result(path: Path) -> dict[str, Any]:
    """The results there are, {} where there are none; ValueError where the file is something else."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"out: {path} is there and is no JSON ({error}); move it away") from error


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
