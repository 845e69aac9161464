"""A command line made from a frozen dataclass: one flag a field, its help and its choices beside it in the class.

argparse alone, so that the same command works on a GPU runner that has PyTorch and nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

Options = TypeVar("Options")


class BadOption(SystemExit):
    """An option that cannot be: exit status 2, as argparse's own errors have; `main` prints the message."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message

    def __str__(self) -> str:
        return self.message


def option(default: Any, help: str, *, choices: Sequence[Any] | None = None) -> Any:
    """A dataclass field that knows its help text and, where there are few, its legal values."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def argument(help: str) -> Any:
    """A dataclass field that is given by its place: `str` one word, `tuple[str, ...]` one or more."""
    return dataclasses.field(metadata={"help": help, "choices": None, "positional": True})


def add_options(parser: argparse.ArgumentParser, options: type) -> None:
    """Adds `--field-name` for every field of the dataclass `options`, but an :func:`argument` by its place.

    bool gives `--x/--no-x`, `tuple[T, ...]` takes several values, `T | None` parses as T.
    """
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        text = field.metadata["help"]
        if field.metadata.get("positional"):
            several: dict[str, Any] = {"nargs": "+"} if typing.get_origin(hints[field.name]) is tuple else {}
            parser.add_argument(field.name, metavar=field.name.upper(), help=_literal(text), **several)
            continue
        flag = "--" + field.name.replace("_", "-")
        kind = _without_none(hints[field.name])
        if not isinstance(field.default, (bool, types.NoneType)) and field.default != ():
            shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            text = f"{text} (default: {shown})"
        keywords: dict[str, Any] = {"default": field.default, "help": _literal(text)}
        if kind is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        else:
            keywords["choices"] = field.metadata["choices"]
            keywords["type"] = kind
            if typing.get_origin(kind) is tuple:
                keywords["type"], keywords["nargs"] = typing.get_args(kind)[0], "+"
        parser.add_argument(flag, **keywords)


def from_namespace(options: type[Options], namespace: argparse.Namespace) -> Options:
    """The dataclass, filled from the parsed flags."""
    values = {field.name: getattr(namespace, field.name) for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    return options(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _literal(text: str) -> str:
    """For argparse, which fills something in after a single percent sign."""
    return text.replace("%", "%%")


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    return hint
