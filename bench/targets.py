"""What others report for one generation (targets.toml), and whether a measurement meets it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import show

FILE = Path(__file__).with_name("targets.toml")


def judge(
    totals: Mapping[str, float], *, config: str, device_type: str, seconds: float = 32.0, device: str | None = None
) -> list[dict[str, Any]]:
    """Every target with `ours_ms`, where measured, and its `verdict`: met, missed, or why it does not apply.

    Where their GPU is known and `device` is another one, the verdict says so: "met, on another GPU".

    `totals`: milliseconds from prompt to waveform at batch 1 by what came out, "mono" or "stereo", where it was
    measured.
    """
    with FILE.open("rb") as file:
        targets = tomllib.load(file)["target"]
    return [
        {
            **target,
            "ours_ms": totals.get(target["output"]),
            "verdict": _verdict(target, totals.get(target["output"]), config, device_type, seconds, device),
        }
        for target in targets
    ]


def table(judged: Sequence[Mapping[str, Any]]) -> Table:
    """Theirs beside ours, with source and hardware."""
    columns = ("target", "source", "hardware", "their ms", "our ms", "verdict")
    cells = [(t["label"], t["source"], t["hardware"], t["ms"], show.number(t["ours_ms"]), t["verdict"]) for t in judged]
    return show.table("targets, prompt to waveform at batch 1", columns, cells, left=3, wrap=3)


def _verdict(
    target: Mapping[str, Any], ours: float | None, config: str, device_type: str, seconds: float, device: str | None
) -> str:
    if device_type == "cpu":
        return "not applicable on a CPU"
    if config != target["config"]:
        return f"not applicable to {config}"
    if seconds < target["seconds"]:
        return f"not applicable to {seconds:g} s"
    if ours is None:
        return "not measured"
    elsewhere = device is not None and "gpu" in target and target["gpu"] not in device
    return ("met" if ours <= target["ms"] else "missed") + (", on another GPU" if elsewhere else "")
