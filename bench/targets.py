"""What others report for one generation (targets.toml), and whether a measurement meets it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("targets.toml")


def judge(totals: Mapping[str, float], *, config: str, device_type: str) -> list[dict[str, Any]]:
    """Every target with its `verdict`: met, missed, or why it does not apply.

    `totals`: milliseconds from prompt to waveform by what came out, "mono" or "stereo", where it was measured.
    """
    with FILE.open("rb") as file:
        targets = tomllib.load(file)["target"]
    return [{**target, "verdict": _verdict(target, totals, config, device_type)} for target in targets]


def _verdict(target: dict[str, Any], totals: Mapping[str, float], config: str, device_type: str) -> str:
    if device_type == "cpu":
        return "not applicable on a CPU"
    if config != target["config"]:
        return f"not applicable to {config}"
    milliseconds = totals.get(target["output"])
    if milliseconds is None:
        return "not measured"
    return "met" if milliseconds <= target["ms"] else "missed"
