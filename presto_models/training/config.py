"""What a run is: frozen dataclasses, read from .toml or .json, by path or by the name of a preset."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

PRESETS = Path(__file__).parent / "presets"
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("bf16", "fp32")
# What may change when a run goes on: how long it is and how often it reports, not what it computes up to there.
CHANGEABLE = frozenset(
    f"train.{name}"
    for name in (
        "steps",
        "decay_steps",
        "log_every",
        "validate_every",
        "sample_every",
        "checkpoint_every",
        "checkpoint_minutes",
    )
)

Config = TypeVar("Config")


@dataclass(frozen=True)
class TrainConfig:
    """What every task's run has.

    Args:
        seed: of everything random.
        steps: optimiser steps of the whole run.
        accumulate: micro-batches a step is split into; the step's batch stays what the task says.
        precision: "bf16": autocast over fp32 weights; "fp32".
        learning_rate: at its peak, see :func:`learning_rate_factor` for warmup, schedule, decay_steps and floor.
        betas, eps, weight_decay: AdamW's; vectors (norms, biases) are not decayed.
        clip: the gradient's largest norm.
        ema_decay: of the averaged weights, which are what is validated, sampled and exported.
        log_every, validate_every, sample_every: in steps; 0: never.
        checkpoint_every: in steps; checkpoint_minutes: also after this long; 0: not by this measure.  One is always
            written at the end.
    """

    seed: int = 0
    steps: int = 100_000
    accumulate: int = 1
    precision: str = "bf16"
    learning_rate: float = 3e-4
    warmup_steps: int = 500
    schedule: str = "constant"
    decay_steps: int = 0
    floor: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.999
    log_every: int = 20
    validate_every: int = 1000
    sample_every: int = 5000
    checkpoint_every: int = 1000
    checkpoint_minutes: float = 15.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {self.schedule!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        for name in ("steps", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("seed", "warmup_steps", "decay_steps", "weight_decay", "log_every", "validate_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1 or not 0 <= self.floor <= 1:
            raise ValueError(f"ema_decay must be in [0, 1) and floor in [0, 1], got {self.ema_decay}, {self.floor}")


def read(name: str | Path, task: str) -> dict[str, Any]:
    """The values in a .toml or .json file, or of a preset, ``presets/<task>-<name>.toml``.

    Raises:
        FileNotFoundError: neither a file nor a preset.  ValueError: the file cannot be parsed.
    """
    path = Path(name)
    if not path.is_file():
        preset = PRESETS / f"{task}-{name}.toml"
        if not preset.is_file():
            known = ", ".join(sorted(p.stem.removeprefix(f"{task}-") for p in PRESETS.glob(f"{task}-*.toml")))
            raise FileNotFoundError(f"no config {str(name)!r}: not a file, and the presets of {task} are {known}")
        path = preset
    try:
        values = json.loads(path.read_text()) if path.suffix == ".json" else tomllib.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return dict(values)


def override(values: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """``values`` with ``table.key=value`` assignments put in; a value is TOML (300, 3e-4, true, "text", [1, 2]), and
    what is not TOML is text."""
    result: dict[str, Any] = json.loads(json.dumps(values))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ValueError(f"an override is key=value, as in train.steps=1000; got {assignment!r}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *tables, last = key.split(".")
        place = result
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise ValueError(f"{key}: {table} is a value, not a table")
        place[last] = value
    return result


def build(kind: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """The dataclass ``kind`` of plain values: tables become the dataclasses its fields name, lists become tuples.

    Raises:
        ValueError: a key that is no field, a value of the wrong type, or one the class itself refuses; says which.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    unknown = sorted(set(values) - fields)
    if unknown:
        raise ValueError(f"{where or kind.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(fields))}")
    arguments = {name: _convert(hints[name], value, f"{where}.{name}".lstrip(".")) for name, value in values.items()}
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where or kind.__name__}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a table, got {value!r}")
        return build(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} must be a list, got {value!r}")
        kinds = typing.get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            raise ValueError(f"{where} must have {len(kinds)} values, got {value!r}")
        return tuple(_convert(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is not hint:
        raise ValueError(f"{where} must be {hint.__name__}, got {value!r}")
    return value


def plain(config: Any) -> dict[str, Any]:
    """The dataclass as JSON values."""
    return dict(json.loads(json.dumps(dataclasses.asdict(config))))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """What a run's config was and is now, one line a value, leaving out what may change (:data:`CHANGEABLE`)."""
    lines = []
    for key in sorted({*old, *new}):
        name, before, after = f"{where}{key}", old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{name}.")
        elif before != after and name not in CHANGEABLE:
            lines.append(f"{name} was {before!r}, is {after!r}")
    return lines
