"""What others report for one generation (targets.toml), and whether a measurement meets it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("targets.toml")


def judge(milliseconds: float | None, *, config: str, device_type: str) -> list[dict[str, Any]]:
    """Every target with its `verdict` for latents that took `milliseconds`: met, missed, or why it does not apply.

    The targets count more than the latents (decoder, stereo), so `met` says that it is met by what is there so far.
    """
    with FILE.open("rb") as file:
        targets = tomllib.load(file)["target"]
    return [{**target, "verdict": _verdict(target, milliseconds, config, device_type)} for target in targets]


def _verdict(target: dict[str, Any], milliseconds: float | None, config: str, device_type: str) -> str:
    if device_type == "cpu":
        return "not applicable on a CPU"
    if config != target["config"]:
        return f"not applicable to {config}"
    if milliseconds is None:
        return "not measured"
    return "met by the latents alone" if milliseconds <= target["ms"] else "missed"
