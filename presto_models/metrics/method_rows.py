"""The rows of a table of methods: which checkpoint, walked how.

A TOML file with a table ``[[rows]]`` each:

    [[rows]]
    name = "presto-s-4"          # of its files and in the table
    checkpoint = "presto-s"      # a folder (of --checkpoints), a shipped name, or a hub id
    group = "owed"               # rows of a group stand together
    note = "a sentence"
    schedule = "own"             # or "full": every block at every noise level
    sampler = "pingpong"         # of presto_models.diffusion.sampling.Sampling, all but the range of noise levels,
    steps = 4                    # which is the model's; what is not given is the checkpoint's own
    guidance = 1.0
    rho = 7.0
    spacing = "interval"
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from presto_kernels import LayerSchedule
from presto_models.diffusion.sampling import Sampling

SCHEDULES = ("own", "full")
REFERENCES = ("test", "validation", "reconstruction", "noise")  # rows that every table has
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")
_SAMPLING = tuple(each.name for each in fields(Sampling) if each.name not in ("sigma_min", "sigma_max"))


@dataclass(frozen=True)
class Row:
    """A method: a checkpoint and what is changed of its sampling (``changes``: fields of :class:`Sampling`).

    Raises:
        TypeError, ValueError: a value that does not fit, before any checkpoint is looked for.
    """

    name: str
    checkpoint: str
    group: str = ""
    note: str = ""
    schedule: str = "own"
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("name", "checkpoint", "group", "note", "schedule"):
            if not isinstance(getattr(self, key), str):
                raise TypeError(f"{key} must be text, got {getattr(self, key)!r}")
        if not _NAME.fullmatch(self.name) or self.name in REFERENCES:
            raise ValueError(f"name must be letters, digits and _ + -, and none of {REFERENCES}; got {self.name!r}")
        if not self.checkpoint:
            raise ValueError('checkpoint must be a folder, a shipped name or a hub id, got ""')
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {self.schedule!r}")
        self.sampling(Sampling())

    def sampling(self, own: Sampling) -> Sampling:
        """The checkpoint's ``own`` sampling with this row's changes; another sampler brings its own spacing."""
        sampler = self.changes.get("sampler")
        rest = {name: value for name, value in self.changes.items() if name != "sampler"}
        return replace(own.changed(sampler=sampler), **rest)

    def settings(self) -> dict[str, Any]:
        """What of a generation it decides, as `evaluate` writes it beside the clips: what is not set is left out, but
        for ``steps`` and ``guidance``, which are then None."""
        full = {"schedule": self.schedule} if self.schedule != "own" else {}
        return {"steps": None, "guidance": None} | dict(self.changes) | full


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a TOML file.

    Raises:
        FileNotFoundError: no such file.  ValueError: no TOML, no rows, two of one name, or a value that does not fit;
        the message names the row.
    """
    tables = read_toml(path)["rows"]
    rows: list[Row] = []
    for number, table in enumerate(tables, 1):
        name = table.get("name", f"number {number}")
        try:
            rows.append(_row(table))
        except (TypeError, ValueError) as error:
            raise ValueError(f"rows: {path}: row {name}: {error}") from error
        if sum(row.name == name for row in rows) > 1:
            raise ValueError(f"rows: {path}: two rows are named {name}")
    return rows


def _row(table: Mapping[str, Any]) -> Row:
    own = tuple(each.name for each in fields(Row) if each.name != "changes")
    missing = [key for key in ("name", "checkpoint") if key not in table]
    unknown = [key for key in table if key not in (*own, *_SAMPLING)]
    if missing or unknown:
        said = f"{', '.join(missing)} missing" if missing else f"{', '.join(unknown)} unknown"
        raise ValueError(f"{said}; a row has {', '.join((*own, *_SAMPLING))}")
    changes = {key: value for key, value in table.items() if key in _SAMPLING}
    return Row(**{key: value for key, value in table.items() if key in own}, changes=changes)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file of rows says; it has ``rows``, a list that is not empty.

    Raises:
        FileNotFoundError: no such file.  ValueError: no TOML, or no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"rows: no file {path}")
    try:
        tables = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"rows: {path} is no TOML: {error}") from error
    if not isinstance(tables.get("rows"), list) or not tables["rows"]:
        raise ValueError(f"rows: {path} has no [[rows]]")
    return tables


@dataclass(frozen=True)
class NetworkUse:
    """What one generation asks of the network.

    calls: of it, a guided one being one call of twice the batch.  evaluations: of one sample; a guided call is two.
    blocks, of_blocks: run in all calls, and what the full depth would have run.
    """

    calls: int
    evaluations: int
    blocks: int
    of_blocks: int


def network_use(
    sampling: Sampling, schedule: LayerSchedule | None, num_blocks: int, *, takes_guidance: bool = False
) -> NetworkUse:
    """Counted, not computed from a formula: the sampler walks with a denoiser that only notes the noise levels.

    Args:
        schedule: which blocks run; None: all.
        takes_guidance: whether the model takes the guidance scale as an input, and so a guided call costs one.
    """
    asked: list[float] = []

    def note(x: Tensor, sigma: float, *_: Any, **__: Any) -> Tensor:
        asked.append(sigma)
        return x

    x, seed = torch.zeros(1, 1, 1), torch.zeros(1, dtype=torch.int64)
    for index in range(sampling.steps):
        x = sampling.step(note, x, index, seed=seed)
    blocks = sum(num_blocks if schedule is None else schedule.budget(sigma) for sigma in asked)
    twice = sampling.guidance != 1 and not takes_guidance
    return NetworkUse(len(asked), len(asked) * (2 if twice else 1), blocks, len(asked) * num_blocks)
