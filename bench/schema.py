"""Reading result files of any version, and saying what is wrong with one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import results
from bench.results import Report

FILE = Path(__file__).with_name("schema") / "result-2.json"
"""The JSON Schema of the present version (draft 2020-12)."""


class ResultError(ValueError):
    """A file that is no result file, or one that this bench cannot read."""


def read(path: str | Path) -> Report:
    """A result file of any version, brought to the present one.

    Version 1 (before there was a number) has no keys and no samples; keys are made as now, samples stay absent.

    Raises:
        ResultError: naming the file and what is wrong with it.
    """
    content = load(path)
    return Report(**{name: content[name] for name in ("meta", "rows", "summary", "refused", "bench")})


def load(path: str | Path) -> dict[str, Any]:
    """:func:`read` as the JSON object itself."""
    return upgrade(parse(path))


def parse(path: str | Path) -> dict[str, Any]:
    """The JSON object as it stands in the file, of any version that this bench reads (:func:`version`)."""
    try:
        content = json.loads(Path(path).read_text(), parse_constant=_no_number)
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultError(f"{path}: no JSON ({error})") from error
    parts = {"meta": dict, "rows": list, "summary": dict, "refused": list}
    given = content if isinstance(content, dict) else {}
    wrong = [name for name, kind in parts.items() if not isinstance(given.get(name), kind)]
    if wrong:
        raise ResultError(f"{path}: no result file of the bench: {', '.join(wrong)} missing or of the wrong kind")
    if not all(isinstance(row, dict) for row in content["rows"]):
        raise ResultError(f"{path}: no result file of the bench: a row must be an object")
    if version(content) not in range(1, results.SCHEMA_VERSION + 1):
        raise ResultError(f"{path}: schema version {version(content)}; this bench reads 1 to {results.SCHEMA_VERSION}")
    return content


def version(content: Mapping[str, Any]) -> Any:
    """The file's version; the first had no number."""
    return content.get("schema_version", 1)


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """What :func:`parse` gave, as the present version writes it."""
    return _from_1(content) if version(content) == 1 else content


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _from_1(content: dict[str, Any]) -> dict[str, Any]:
    try:
        words = shlex.split(str(content["meta"].get("command") or ""))
    except ValueError:  # a quote that never ends: somebody's own line
        words = []
    bench = words[3] if words[1:3] == ["-m", "bench"] and len(words) > 3 else "unnamed"
    if "--aot" in words:
        bench = "aot"
    rows = [{"key": results.row_key(row), **row} for row in content["rows"]]
    upgraded = {"bench": bench, **content, "rows": rows}
    return upgraded | {"schema_version": results.SCHEMA_VERSION}
