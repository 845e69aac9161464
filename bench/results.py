"""A result file: `meta` (machine and command), `rows` (one a measurement), `summary` (the few numbers people quote)."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import Ratio

Row = dict[str, Any]


@dataclass
class Report:
    """What a bench run found. `save` may be called after every new row: readers never see half a file."""

    meta: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    refused: list[Row] = field(default_factory=list)

    def refuse(self, reason: Exception, **what: Any) -> None:
        """Records an implementation that was not timed, and why."""
        lines = str(reason).strip().splitlines() or [""]
        self.refused.append({**what, "reason": f"{type(reason).__name__}: {lines[0]}"})

    def save(self, path: str | Path | None) -> None:
        if path is not None:
            write_json(path, vars(self))


def ratio_fields(name: str, ratio: Ratio | None) -> dict[str, Any]:
    """A paired ratio for a summary: `name` its median, `name_interval` the 95 % interval; nothing for None."""
    if ratio is None:
        return {}
    return {name: round(ratio.median, 4), f"{name}_interval": [round(ratio.low, 4), round(ratio.high, 4)]}


def write_json(path: str | Path, payload: Any) -> None:
    """Writes JSON beside `path` and renames it into place, so that a stop leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(payload, file, indent=1, allow_nan=False)
            file.write("\n")
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
