"""The table as it stands: which runs there are, what they come to, on disk after every change."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from presto_models.files import written_beside
from presto_models.metrics.control.hearing import Hearing, heard_of
from presto_models.metrics.control.making import Making
from presto_models.metrics.control.options import ControlTableOptions
from presto_models.metrics.control.race import race
from presto_models.metrics.control.rows import RACE, Row, by_cost
from presto_models.metrics.control.runs import Run, Runs
from presto_models.metrics.control.summary import summarise
from presto_models.metrics.provenance import command_of, read_result, reason

_MEASURING = ("seed", "training_clips", "tags", "resamples", "shrinkage")


class Table:
    """Rows and the runs they have; ``entries``: a row's id to what the results say of it.

    Args:
        runs: a row is to have.
    """

    def __init__(
        self, options: ControlTableOptions, rows: Sequence[Row], making: Making, work: Path, *, runs: int
    ) -> None:
        self.options, self.rows, self.making, self.number = options, list(rows), making, runs
        self.runs, self.path = Runs(work / "runs"), Path(options.out)
        before = read_result(self.path)
        self.references: dict[str, Any] = before.get("references", {})
        self.earlier = {entry["id"]: entry for entry in before.get("rows", [])}
        self.weights: dict[str, dict[str, str]] = {}
        self.found: dict[str, dict[int, Run]] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.races: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            self.entries[row.id] = self._told(row)
            try:
                self.weights[row.id] = making.weights(row)
            except (FileNotFoundError, ValueError) as error:
                self.entries[row.id]["left_out"] = reason(error)
                continue
            keys = {number: self.key(row, number) for number in range(runs)}
            kept = {number: self.runs.read(row.id, number, key) for number, key in keys.items()}
            self.found[row.id] = {number: run for number, run in kept.items() if run is not None}
            self.update(row)

    def key(self, row: Row, number: int) -> str:
        return self.making.key(row, self.weights[row.id], number)

    def missing(self, wanted: Sequence[Row], part: int = 0, of: int = 1) -> list[tuple[Row, int]]:
        """Runs to be made, the first one of every row before the second of any, cheap methods first.

        Args:
            part, of: only those of one process: every row's runs are dealt out in turn, whichever are there already.
        """
        return [
            (row, number)
            for number in range(self.number)
            for index, row in enumerate(by_cost(self.rows))
            if (index + number) % of == part and row in wanted and number not in self.found.get(row.id, {number: None})
        ]

    def add(self, row: Row, run: Run) -> None:
        self.found[row.id][run.number] = run
        self.update(row)

    def update(self, row: Row) -> None:
        """The entry of a row after its runs have changed; what ears have heard is kept until they listen again."""
        found, entry = self.of(row), self._told(row)
        failures = [self.runs.failure(row.id, n, self.key(row, n)) for n in range(self.number)]
        failures = [failure for failure in failures if failure is not None]
        if failures:
            entry["failed"] = {"runs": len(failures), "first": failures[0]}
        if found:
            options = self.options
            entry |= summarise(found, row.asked.threshold, resamples=options.resamples, seed=options.seed)
            heard = self.earlier.get(row.id, {}).get("heard", {})
            entry["heard"] = heard if heard.get("of") == heard_of(found) else {}
            entry["made_on"] = sorted({run.made_on["device"] for run in found})
        else:
            entry["left_out"] = f"every run failed: {failures[0]}" if failures else "no run yet"
        entry["runs"] = len(found)
        self.entries[row.id] = entry
        self.races.pop(row.task, None)

    def of(self, row: Row) -> list[Run]:
        """Its finished runs, by number."""
        return [run for _, run in sorted(self.found.get(row.id, {}).items())]

    def listen(self, hearing: Hearing) -> None:
        """FAD and tags of all rows, written after each."""
        first = next((row for row in self.rows if self.of(row)), None)
        if first is None:
            return
        autoencoder = self.making.stage.load(first.checkpoint).autoencoder
        self.references = hearing.references(self.references, autoencoder, self.weights[first.id])
        self.write()
        for row in self.rows:
            if found := self.of(row):
                whole = {run.number for other in self.rows if other.task == row.task for run in self.of(other)}
                entry = self.entries[row.id]
                entry["heard"] = hearing.row(entry["heard"], row.id, found, self.runs, whole=sorted(whole))
                self.write()

    def result(self) -> dict[str, Any]:
        """Plain JSON."""
        return _finite(
            {
                "meta": self._meta(),
                "references": self.references,
                "rows": list(self.entries.values()),
                "races": self._races(),
            }
        )

    def write(self) -> None:
        with written_beside(self.path) as beside:
            beside.write_text(json.dumps(self.result(), indent=1, allow_nan=False))

    def _told(self, row: Row) -> dict[str, Any]:
        """What is known of it before any run."""
        told = {"id": row.id, "task": row.task, "name": row.name, "method": row.method, "note": row.note, "runs": 0}
        told |= {"checkpoint": Path(row.checkpoint).name, "asked": row.decides(), "of_runs": self.number}
        return told | {"threshold": row.asked.threshold, "unit": row.asked.unit, "figure": row.asked.figure}

    def _meta(self) -> dict[str, Any]:
        options, making = self.options, self.making
        devices = sorted({device for entry in self.entries.values() for device in entry.get("made_on", [])})
        meta = {name: getattr(options, name) for name in _MEASURING}
        meta |= {"runs": self.number, "seconds": making.seconds, "device": "; ".join(devices)}
        return meta | {"torch": torch.__version__, "command": command_of("evaluate control", options, _SAID)}

    def _races(self) -> list[dict[str, Any]]:
        """Of each task's rows of either method: how much sooner those of the second come to the error of the first."""
        for task in dict.fromkeys(row.task for row in self.rows):
            if task not in self.races:
                self.races[task] = list(self._races_of(task))
        return [found for races in self.races.values() for found in races]

    def _races_of(self, task: str) -> Iterator[dict[str, Any]]:
        rows = [row for row in self.rows if row.task == task]
        options = self.options
        for of, by in product(*([row for row in rows if row.method == method] for method in RACE)):
            found = race(self.of(of), self.of(by), resamples=options.resamples, seed=options.seed)
            if found is not None:
                yield {"task": task, "of": of.name, "by": by.name, **found}


_SAID = ("rows", "out", "runs", "seconds", *_MEASURING)


def _finite(value: Any) -> Any:
    """With None for what is NaN or infinite, which JSON has not."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
