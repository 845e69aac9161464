"""`python -m presto_models evaluate control`: every way to control a model, for every task, measured alike.

A row is a method on a checkpoint for a task.  Its run i is made from the i-th held-out clip (its caption is the prompt,
its sound what is painted, followed or passed over) and the seed i, the same for every row, and measured by the task's
own control; the music is then listened to: FAD against those clips, and whether the tags of their captions are heard.

Every finished run is kept in a folder under a key of all that decides it.  A table that is stopped goes on; other
settings make anew what they change and no more; several processes can make the runs of one table:

    python -m presto_models evaluate control --rows bench/control.toml --data DIR --out control.json --shard 1/2 &
    python -m presto_models evaluate control --rows bench/control.toml --data DIR --out control.json --shard 2/2 &
    wait; python -m presto_models evaluate control --rows bench/control.toml --data DIR --out control.json --collect
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from presto_models.metrics.clips import choose_clips
from presto_models.metrics.control.figure import draw_control
from presto_models.metrics.control.hearing import Hearing
from presto_models.metrics.control.making import Making, Stage
from presto_models.metrics.control.options import ControlTableOptions
from presto_models.metrics.control.report import MARK, markdown, show_control
from presto_models.metrics.control.rows import Row, read_rows, selected
from presto_models.metrics.control.table import Table
from presto_models.metrics.ears import Tagger
from presto_models.metrics.musicnn import MusicNN
from presto_models.metrics.pages import check_page, write_page
from presto_models.metrics.players import Checkpoints
from presto_models.metrics.provenance import reason
from presto_models.metrics.report import shown

RUNS, SECONDS = {"cpu": 12, "cuda": 64}, {"cpu": 10.0, "cuda": 32.0}
_EXPECTED = (ValueError, TypeError, ArithmeticError, FileNotFoundError, torch.OutOfMemoryError)


def run(options: ControlTableOptions) -> dict[str, Any]:
    """Makes runs and measures rows, writes ``options.out`` (and page and figure), shows the table and returns it.  A
    shard makes its runs and writes no table.

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
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        stage = Checkpoints(device, None, options.checkpoints)
        result = measure(options, read_rows(options.rows), stage, MusicNN.load)
        if options.shard is not None:
            made, left = result["made"], result["left"]
            print(f"shard {options.shard}: {made} runs made, {left} left; --collect makes the table of all there are")
            return result
    if options.docs:
        write_page(options.docs, MARK, markdown(result))
    if options.plot:
        draw_control(result, options.plot)
    if options.json:
        print(json.dumps(result))
    else:
        show_control(result)
    return result


def measure(
    options: ControlTableOptions, rows: Sequence[Row], stage: Stage, tagger: Callable[[], Tagger]
) -> dict[str, Any]:
    """As :func:`run`, of any checkpoints and ears.  Of a shard: ``made`` and ``left`` runs."""
    wanted, started = selected(rows, options.only), time.monotonic()
    seconds, number = options.seconds or SECONDS[stage.device.type], options.runs or RUNS[stage.device.type]
    data = options.data or ""
    clips = choose_clips(data, "test", number, seconds, seed=options.seed, tagged=options.tags, of_pieces=True)
    if silent := [clip.path for clip in clips if not clip.caption]:
        raise ValueError(f"test clips need captions to be prompts; {len(silent)} have none, {silent[0]} among them")
    work = Path(options.work) if options.work else Path(options.out).with_suffix(".work")
    making = Making(stage, clips, data, seconds=seconds, seed=options.seed)
    table = Table(options, rows, making, work, runs=number)
    if not table.weights:
        raise ValueError(f"no row's checkpoint can be used: {next(iter(table.entries.values()))['left_out']}")
    alone, hearing = options.shard is None, None
    if alone:  # before hours of runs: are there clips enough, and ears?
        rate = stage.load(next(row for row in rows if row.id in table.weights).checkpoint).sample_rate
        with torch.no_grad():
            hearing = Hearing(options, tagger(), rate, work, runs=number, seconds=seconds)
        table.write()
    made = left = 0
    if not options.collect:
        turns = table.missing(wanted, *options.part())
        for row, turn in shown(turns, "runs", len(turns)):
            if options.minutes is not None and time.monotonic() - started >= 60 * options.minutes:
                left += 1
                continue
            _make(table, row, turn)
            made += 1
            if alone:
                table.write()
    if hearing is None:
        return {"made": made, "left": left}
    with torch.no_grad():
        table.listen(hearing)
    return table.result()


def _make(table: Table, row: Row, number: int) -> None:
    """A run, kept; or why there is none, which another start of the command tries again."""
    key = table.key(row, number)
    try:
        run, audio, sample_rate = table.making.run(row, number, key)
    except _EXPECTED as error:  # of this method and clip; a full disk ends the command
        table.runs.fail(row.id, number, key, reason(error))
        table.update(row)
    else:
        table.runs.write(row.id, run, audio, sample_rate)
        table.add(row, run)
