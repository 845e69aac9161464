"""The rows of the table of ways to control: which method on which checkpoint, for which tasks.

A TOML file.  A table ``[tasks.NAME]`` has the numbers that all rows of a task share (those of the classes in
presto_models.metrics.control.tasks):

    [tasks.melody]
    steps = 150
    threshold = 1.2

and a table ``[[rows]]`` is a row for each of its tasks:

    [[rows]]
    name = "md-50"               # in the table; by default the method
    method = "md"                # of presto_models.metrics.control.methods
    tasks = ["outpaint"]         # by default all the method can do
    checkpoint = "presto-tiny"   # a folder (of --checkpoints), a shipped name, or a hub id
    settings = {until = 0.5}     # of the method, where it has some
    adaptor = "FOLDER"           # where the method needs one
    dtype = "fp32"               # of the diffusion model; by default bf16 on CUDA and fp32 on a CPU
    stop = true                  # end a run where the task's threshold is reached
    note = "a sentence"
    sampling_steps = 20          # and what else presto_models.ditto.DittoOptions has
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from presto_models.ditto import DittoOptions
from presto_models.metrics.control.methods import METHODS, Method
from presto_models.metrics.control.tasks import TASKS, ControlTask
from presto_models.metrics.method_rows import read_toml

DTYPES = ("fp32", "bf16")
RACE = ("ditto", "ditto-2")  # methods whose times to the same error are compared
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")
_OPTIONS = tuple(each.name for each in fields(DittoOptions))
_TEXTS = ("name", "method", "checkpoint", "adaptor", "dtype", "note")


@dataclass(frozen=True)
class Row:
    """One method for one task.

    ``changes``: what the row says of DittoOptions.  ``settings``: of the method.  The rest as in the file.

    Raises:
        TypeError, ValueError: a value that does not fit, before any checkpoint is looked for.
    """

    name: str
    task: str
    asked: ControlTask
    method: str
    checkpoint: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    adaptor: str = ""
    dtype: str = ""
    stop: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        for key in _TEXTS:
            if not isinstance(getattr(self, key), str):
                raise TypeError(f"{key} must be text, got {getattr(self, key)!r}")
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name must be letters, digits and _ + -; got {self.name!r}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}")
        if self.task not in self.how.tasks:
            raise ValueError(f"tasks: {self.method} can do {', '.join(self.how.tasks)}; got {self.task!r}")
        if not self.checkpoint:
            raise ValueError('checkpoint must be a folder, a shipped name or a hub id, got ""')
        if self.dtype and self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}")
        if self.how.adaptor != bool(self.adaptor):
            wanted = "needs an adaptor" if self.how.adaptor else f"takes no adaptor, got {self.adaptor!r}"
            raise ValueError(f"{self.method} {wanted}")
        if not isinstance(self.stop, bool):
            raise TypeError(f"stop must be true or false, got {self.stop!r}")
        if self.stop and self.asked.threshold is None:
            raise ValueError(f"stop needs a threshold in [tasks.{self.task}]")
        if self.settings and self.how.settings is None:
            raise ValueError(f"{self.method} has no settings, got {', '.join(self.settings)}")
        self.arguments()
        self.options()

    @property
    def id(self) -> str:
        """``"melody/ditto"``."""
        return f"{self.task}/{self.name}"

    @property
    def how(self) -> Method:
        return METHODS[self.method]

    def options(self) -> DittoOptions:
        steps = {} if self.asked.steps is None else {"steps": self.asked.steps}
        return DittoOptions(**(steps | dict(self.changes)))

    def arguments(self) -> dict[str, Any]:
        """``settings=`` of the method, where the row says some."""
        if not self.settings or self.how.settings is None:
            return {}
        return {"settings": self.how.settings(**self.settings)}

    def decides(self) -> dict[str, Any]:
        """What of this row decides the music, plain JSON: what is not said is left out, so that a new option changes no
        key."""
        said: dict[str, Any] = {
            "task": self.task,
            "asked": self.asked.asked(),
            "method": self.method,
            "settings": dict(self.settings),
        }
        steps = {"steps": self.options().steps} if self.how.searches else {}
        stop = {"threshold": self.asked.threshold} if self.stop else {}
        return said | {"options": dict(self.changes) | steps, "dtype": self.dtype} | stop


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a TOML file, in its order of tasks and then of rows.

    Raises:
        FileNotFoundError: no such file.  ValueError: no TOML, no rows, two alike, or a value that does not fit; the
        message names the row or the task.
    """
    tables = read_toml(path)
    unknown = [key for key in tables if key not in ("tasks", "rows")]
    if unknown:
        raise ValueError(f"rows: {path}: {', '.join(unknown)} unknown; a file has tasks and rows")
    tasks = {name: _task(path, name, given) for name, given in tables.get("tasks", {}).items()}
    rows: list[Row] = []
    for number, table in enumerate(tables["rows"], 1):
        name = table.get("name", table.get("method", f"number {number}"))
        try:
            rows += _rows(table, tasks)
        except (TypeError, ValueError) as error:
            raise ValueError(f"rows: {path}: row {name}: {error}") from error
    ids = [row.id for row in rows]
    if twice := sorted({each for each in ids if ids.count(each) > 1}):
        raise ValueError(f"rows: {path}: two rows are {', '.join(twice)}")
    order = [*tasks, *TASKS]
    return sorted(rows, key=lambda row: order.index(row.task))


def selected(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    """Those that ``only`` names by TASK/NAME, TASK or NAME; without it all.

    Raises:
        ValueError: it names one that is not there.
    """
    known = {name for row in rows for name in (row.id, row.task, row.name)}
    if unknown := sorted(set(only) - known):
        raise ValueError(f"only: no rows {', '.join(unknown)}; there are {', '.join(row.id for row in rows)}")
    return [row for row in rows if not only or {row.id, row.task, row.name} & set(only)]


def by_cost(rows: Sequence[Row]) -> list[Row]:
    """Cheap methods first."""
    order = list(METHODS)
    return sorted(rows, key=lambda row: order.index(row.method))


def _task(path: str | os.PathLike[str], name: str, given: Mapping[str, Any]) -> ControlTask:
    if name not in TASKS:
        raise ValueError(f"rows: {path}: no task {name}; there are {', '.join(TASKS)}")
    known = {each.name: each for each in fields(TASKS[name])}
    if unknown := [key for key in given if key not in known]:
        raise ValueError(f"rows: {path}: task {name}: {', '.join(unknown)} unknown; it has {', '.join(known)}")
    for key, value in given.items():
        fits = list if key == "forms" else int if key == "steps" else (int, float)
        if isinstance(value, bool) or not isinstance(value, fits):
            raise ValueError(f"rows: {path}: task {name}: {key} does not fit, got {value!r}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return TASKS[name](**values)


def _rows(table: Mapping[str, Any], tasks: Mapping[str, ControlTask]) -> list[Row]:
    own = ("name", "method", "tasks", "checkpoint", "settings", "adaptor", "dtype", "stop", "note")
    missing = [key for key in ("method", "checkpoint") if key not in table]
    unknown = [key for key in table if key not in (*own, *_OPTIONS)]
    if missing or unknown:
        said = f"{', '.join(missing)} missing" if missing else f"{', '.join(unknown)} unknown"
        raise ValueError(f"{said}; a row has {', '.join((*own, *_OPTIONS))}")
    method = table["method"]
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    wanted = table.get("tasks", METHODS[method].tasks)
    if isinstance(wanted, str) or not wanted:
        raise TypeError(f"tasks must be a list of names, got {wanted!r}")
    values: dict[str, Any] = {"name": method} | {
        key: value for key, value in table.items() if key in own and key != "tasks"
    }
    changes = {key: value for key, value in table.items() if key in _OPTIONS}
    return [Row(task=task, asked=tasks.get(task) or _default(task), changes=changes, **values) for task in wanted]


def _default(task: str) -> ControlTask:
    if task not in TASKS:
        raise ValueError(f"tasks must be of {', '.join(TASKS)}; got {task!r}")
    return TASKS[task]()
