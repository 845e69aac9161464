"""`python -m presto_models evaluate methods`: one table of many ways to generate, all measured alike.

A row is a checkpoint and how it is walked (presto_models.metrics.method_rows).  Each generates one clip for the caption
of every test clip, from the same seeds, and is compared with the real music of those test clips: FAD, MMD, density,
recall, coverage, agreement with the tags asked for, diversity across seeds of one prompt.  Four rows say what the
figures can be: the test clips themselves, other real music (the floor), the test clips through the autoencoder, and
noise (the ceiling).  At the end all rows are timed against each other in one run.

Everything lasting is kept in a folder, and the results are written anew after every row: a run that is stopped goes
on, and a row that is added later is the only one computed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from presto_models.components import AUTOENCODER_FILE
from presto_models.files import written_beside
from presto_models.metrics.ears import Tagger
from presto_models.metrics.measuring import Measuring
from presto_models.metrics.method_options import MethodsOptions
from presto_models.metrics.method_report import MARK, draw_methods, markdown, show_methods
from presto_models.metrics.method_rows import Row, read_rows
from presto_models.metrics.musicnn import MusicNN
from presto_models.metrics.pages import check_page, write_page
from presto_models.metrics.players import PipelinePlayers, Players
from presto_models.metrics.provenance import command_of, device_name, digest, read_result, reason
from presto_models.metrics.report import shown
from presto_models.metrics.speeds import interleaved, speedup
from presto_models.metrics.splits import EncodesAndDecodes, Splits, choose_splits, described

_FILES = ("rows", "out", "docs", "plot")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(options: MethodsOptions) -> dict[str, Any]:
    """Measures the rows, writes ``options.out`` (and page and figure), shows the table and returns what was written.

    Raises:
        FileNotFoundError, ValueError: rows, data or page that do not fit, said before anything is computed.
        ImportError: musicnn is not installed.
    """
    if options.docs:
        check_page(options.docs, MARK)
    if options.table_only:
        result = json.loads(Path(options.out).read_text())
    else:
        if options.rows is None or options.data is None:
            raise ValueError("rows and data must be given, unless with table_only")
        rows = read_rows(options.rows)
        players = PipelinePlayers(
            options.seconds,
            torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu")),
            None if options.dtype is None else _DTYPES[options.dtype],
            options.checkpoints,
        )
        result = measure(options, rows, players, MusicNN.load())
    if options.docs:
        write_page(options.docs, MARK, markdown(result))
    if options.plot:
        draw_methods(result, options.plot)
    if options.json:
        print(json.dumps(result))
    else:
        show_methods(result)
    return result


@torch.no_grad()
def measure(options: MethodsOptions, rows: Sequence[Row], players: Players, tagger: Tagger) -> dict[str, Any]:
    """As :func:`run`, of any players and ears; writes the results and what is kept for another run."""
    unknown = sorted(set(options.only) - {row.name for row in rows})
    if unknown:
        raise ValueError(f"only: no rows {', '.join(unknown)}; there are {', '.join(row.name for row in rows)}")
    if options.seeds < 2 or options.prompts < 0:
        raise ValueError(f"seeds must be at least 2 and prompts at least 0, got {options.seeds} and {options.prompts}")
    started = time.monotonic()
    splits = choose_splits(
        options.data or "",
        clips=options.clips,
        seconds=options.seconds,
        seed=options.seed,
        tags=options.tags,
        training_clips=options.training_clips,
    )
    table = _Table(options, rows, players, splits)
    autoencoder, weights = _autoencoder(rows, players, table)
    measuring = Measuring(options, splits, autoencoder.sample_rate, tagger)
    table.set_references(weights, lambda: measuring.references(autoencoder, weights))
    for row in rows:
        entry = table.entries[row.name]
        if "left_out" not in entry or "weights" not in entry:
            continue
        if options.only and row.name not in options.only:
            entry["left_out"] = "not asked for yet"
        elif options.minutes is not None and time.monotonic() - started >= 60 * options.minutes:
            entry["left_out"] = f"no time: {options.minutes:g} minutes had passed before its turn"
        else:
            try:
                entry |= measuring.row(row, players.load(row), entry["weights"])
            except (ValueError, FileNotFoundError) as error:  # of this checkpoint; a full disk ends the run
                entry["left_out"] = reason(error)
            else:
                del entry["left_out"]
        table.write()
    measured = [row for row in rows if "left_out" not in table.entries[row.name]]
    if options.time_rounds and measured:
        _time(options, measured, players, [clip.caption for clip in splits.test], table)
    return table.result()


def _autoencoder(rows: Sequence[Row], players: Players, table: _Table) -> tuple[EncodesAndDecodes, dict[str, str]]:
    """That of the first row whose checkpoint can be used, and the weights of that checkpoint."""
    for row in rows:
        entry = table.entries[row.name]
        try:
            if "weights" in entry:
                return players.load(row).autoencoder, entry["weights"]
        except (ValueError, FileNotFoundError) as error:
            entry["left_out"] = reason(error)
    raise ValueError(f"no row's checkpoint can be used: {table.entries[rows[0].name]['left_out']}")


def _time(
    options: MethodsOptions, rows: Sequence[Row], players: Players, captions: Sequence[str], table: _Table
) -> None:
    """The times of all rows in one run, and how much faster each is than the first row of the table."""
    loaded = {row.name: players.load(row) for row in rows}

    def measure_of(name: str) -> Callable[[int], dict[str, float]]:
        def timed(number: int) -> dict[str, float]:
            # A number behind the caption makes it a prompt that no text cache has seen.
            return loaded[name].time(f"{captions[number % len(captions)]} {number}", options.seed + number)

        return timed

    times = interleaved(
        {name: measure_of(name) for name in loaded},
        rounds=options.time_rounds,
        seed=options.seed,
        progress=lambda numbers: shown(numbers, "rounds of timing", options.time_rounds + 1),
    )
    first = next(iter(table.entries))
    for name, parts in times.items():
        faster = speedup(times[first]["pipeline_ms"], parts["pipeline_ms"]).as_dict() if first in times else None
        medians = {part: median(values) for part, values in parts.items()}
        table.entries[name]["time"] = medians | {
            "speedup": faster,
            "over": first,
            "rounds": options.time_rounds,
            "device": table.meta["device"],
        }
    table.write()


class _Table:
    """The results as they stand, on disk after every :meth:`write`; entries: row's name -> what is known of it."""

    def __init__(self, options: MethodsOptions, rows: Sequence[Row], players: Players, splits: Splits) -> None:
        self.options, self.path = options, Path(options.out)
        before = read_result(self.path)
        self.references: dict[str, Any] = before.get("references", {})
        pieces = {"test": len({clip.piece for clip in splits.test})}
        pieces["validation"] = len({clip.piece for clip in splits.validation})
        self.meta = _meta(options, players.device) | {"pieces": pieces}
        earlier = {entry["name"]: entry for entry in before.get("rows", [])}
        self.common = digest([_common(options), described([*splits.test, *splits.validation, *splits.training])])
        self.entries: dict[str, dict[str, Any]] = {}
        for row in rows:
            entry: dict[str, Any] = {name: getattr(row, name) for name in ("name", "group", "note")}
            entry |= {"checkpoint": Path(row.checkpoint).name, "asked": row.settings(), "left_out": "not reached yet"}
            self.entries[row.name] = entry
            try:
                entry["weights"] = players.weights(row)
            except (FileNotFoundError, ValueError) as error:
                entry["left_out"] = reason(error)
                continue
            entry["key"] = digest([self.common, entry["weights"], row.settings()])
            known = earlier.get(row.name, {})
            if known.get("key") == entry["key"] and "left_out" not in known:
                del entry["left_out"]
                self.entries[row.name] = known | entry

    def set_references(self, weights: Mapping[str, str], make: Callable[[], list[dict[str, Any]]]) -> None:
        """Those that stand there already where they were made the same way, of an autoencoder with these weights."""
        key = digest([self.common, weights.get(AUTOENCODER_FILE)])
        if self.references.get("key") != key:
            self.references = {"key": key, "rows": make()}
        self.write()

    def result(self) -> dict[str, Any]:
        return {"meta": self.meta, "references": self.references, "rows": list(self.entries.values())}

    def write(self) -> None:
        with written_beside(self.path) as beside:
            beside.write_text(json.dumps(self.result(), indent=1))


def _meta(options: MethodsOptions, device: torch.device) -> dict[str, Any]:
    return _common(options) | {
        "command": command_of("evaluate methods", options, (*_FILES, *_common(options), "time_rounds")),
        "device": device_name(device),
        "torch": torch.__version__,
    }


def _common(options: MethodsOptions) -> dict[str, Any]:
    """The options that decide what a row measures, whatever the row."""
    names = ("clips", "seconds", "dtype", "seed", "batch", "prompts", "seeds", "resamples", "shrinkage")
    return {name: getattr(options, name) for name in (*names, "training_clips", "tags")}
