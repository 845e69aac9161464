"""`python -m bench validate FILES...`: whether result files are what bench/schema says, and what is wrong where.

The schema knows types; here stands what it cannot say: keys are unique and made by `results.row_key`, there is a sample
a round, and percentiles are those of the samples.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from bench import results, schema, show
from bench.cli import BadOption, argument, option

MOST = 10  # problems shown of one file
SAMPLE_DIGITS = 1e-5  # samples are kept to six digits, percentiles whole


@dataclass(frozen=True)
class ValidateOptions:
    """Whether result files are whole: exit status 0 if all are, 1 if one is not, 2 if one is not there."""

    files: tuple[str, ...] = argument("result files of any version")
    json: str | None = option(None, "write what was found to this file")


def run(options: ValidateOptions) -> int:
    """A line a file, and below it what is wrong."""
    found: dict[str, list[str]] = {}
    for file in options.files:
        try:
            said, found[file] = validate(file)
        except ImportError as error:
            raise BadOption(str(error)) from error
        show.console.print(f"{file}: {said}", markup=False, soft_wrap=True)
        for problem in found[file][:MOST]:
            show.console.print(f"  {problem}", markup=False, soft_wrap=True)
        if len(found[file]) > MOST:
            show.console.print(f"  and {len(found[file]) - MOST} more")
    if options.json is not None:
        results.write_json(options.json, found)
    if not all(Path(file).is_file() for file in options.files):
        return 2
    return 1 if any(found.values()) else 0


def validate(path: str | Path) -> tuple[str, list[str]]:
    """ "ok (...)" or how many problems, and the problems, worst first."""
    try:
        content = schema.parse(path)
    except schema.ResultError as error:
        return "not read", [str(error).removeprefix(f"{path}: ")]
    version = schema.version(content)
    current = schema.upgrade(content)
    problems = [*schema_problems(current), *row_problems(current["rows"])]
    what = f"version {version}"
    if version != results.SCHEMA_VERSION:
        what += f", read as version {results.SCHEMA_VERSION}"
    if not problems:
        return f"ok ({what}; {current['bench']}, {len(current['rows'])} rows)", []
    return f"{len(problems)} problem{'s' if len(problems) > 1 else ''} ({what})", problems


def schema_problems(content: dict[str, Any]) -> list[str]:
    """What the JSON Schema refuses, the most telling first.

    Raises:
        ImportError: naming the extra, where the library jsonschema is not installed.
    """
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import relevance
    except ImportError as error:
        raise ImportError("bench validate needs jsonschema: pip install 'presto-kernels[bench]'") from error
    validator = Draft202012Validator(json.loads(schema.FILE.read_text()))
    errors = sorted(validator.iter_errors(content), key=relevance, reverse=True)
    return [f"{error.json_path}: {_words(error)}" for error in errors]


def row_problems(rows: list[results.Row]) -> Iterator[str]:
    """What is wrong between a row's fields, and between rows."""
    for index, row in enumerate(rows):
        for problem in _row_problems(row):
            yield f"$.rows[{index}]{problem}"
    times = Counter(str(row.get("key")) for row in rows)
    for key, count in times.items():
        if count > 1:
            yield f"$.rows: {count} rows have the key {key!r}"


def _row_problems(row: results.Row) -> Iterator[str]:
    key = results.row_key(row)
    if key and "key" in row and row["key"] != key:
        yield f".key: {row['key']!r}, but the row's fields make {key!r}"
    for name, value in row.items():
        if name.endswith("_interval") and _numbers(value) and len(value) == 2 and value[0] > value[1]:
            yield f".{name}: its low end {value[0]} is above its high end {value[1]}"
    samples = row.get("samples_ms")
    if not _numbers(samples):
        return
    if "rounds" in row and row["rounds"] != len(samples):
        yield f".samples_ms: {len(samples)} samples of {row['rounds']} rounds"
    for percent in (50, 95, 99) if samples else ():
        stated, of_samples = row.get(f"ms_p{percent}"), float(np.percentile(samples, percent))
        if isinstance(stated, (int, float)) and abs(stated - of_samples) > SAMPLE_DIGITS * max(of_samples, stated):
            yield f".ms_p{percent}: {stated:g}, but its samples' is {of_samples:g}"


def _numbers(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and all(isinstance(each, (int, float)) for each in value)


def _words(error: Any) -> str:
    """The message without the whole row in it."""
    if error.validator == "anyOf":
        return f"no measured field: one of {', '.join(each['required'][0] for each in error.validator_value)}"
    text = str(error.message)
    return text if len(text) <= 160 else f"{text[:60]} ... {text[-90:]}"
