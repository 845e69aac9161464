"""What a result says of how it came about, so that it can be read, and made again, on another machine."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Sequence
from dataclasses import fields
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


def command_of(command: str, options: Any, said: Sequence[str]) -> str:
    """How to make a result again with ``python -m presto_models COMMAND``.

    Args:
        options: a dataclass that may have ``data`` and ``checkpoints``, folders of one machine, which are named and not
            told.
        said: the fields to tell where they are not the default.
    """
    words = [f"python -m presto_models {command}", "--data DIR"]
    words += ["--checkpoints DIR"] if options.checkpoints else []
    for each in fields(options):
        value = getattr(options, each.name)
        if each.name not in said or value is None or value == each.default:
            continue
        text = " ".join(value) if isinstance(value, tuple) else relative(value) if isinstance(value, str) else value
        words.append(f"--{each.name.replace('_', '-')} {text}")
    return " ".join(words)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
