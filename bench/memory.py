"""`python -m bench memory`: what a generation holds in memory and needs at its peak, stage by stage, presto beside
plain PyTorch, each in a process of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from bench import machine, memory_stages, results, show, subprocesses
from bench.cli import BadOption, option
from bench.memory_stages import NEEDS, Case
from bench.names import PRESTO, REFERENCE
from bench.results import Row
from presto_models import DiTConfig
from presto_models.autoencoders import OobleckConfig

PEAK_RATIO = "peak_reference_over_this"


@dataclass(frozen=True)
class MemoryOptions:
    """Resting and peak memory of weights, precomputed tensors, a step, decode, stereo and a whole generation."""

    config: str = option("presto-32s", "model sizes", choices=("presto-32s", "tiny"))
    dtype: str = option("bf16", "dtype of the weights", choices=tuple(machine.DTYPES))
    batch: tuple[int, ...] = option((1,), "batch sizes")
    length: tuple[float, ...] = option((), "seconds of audio, several; without it the config's nominal length")
    stages: tuple[str, ...] = option(tuple(NEEDS), "what is measured", choices=tuple(NEEDS))
    steps: int = option(4, "sampler steps")
    compare: bool = option(True, "plain PyTorch beside it")
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    json: str | None = option(None, "write the results to this file, case by case")


def run(options: MemoryOptions) -> int:
    """Measures and prints. Exit status 1 where a case could not be measured."""
    device = machine.pick_device(options.device)
    cases = listed(options, device.type)
    report = results.start("memory", options, device, [options.dtype])
    interrupted = False
    try:
        with show.rounds(f"{len(cases)} processes") as on_progress:
            for index, case in enumerate(cases):
                try:
                    found = subprocesses.call("bench.memory_stages:measure", asdict(case))
                except subprocesses.ChildError as error:
                    report.refuse(error, **_what(case))
                else:
                    report.rows.append(row(case, found, report.rows))
                report.save(options.json)
                on_progress((index + 1) / len(cases))
    except KeyboardInterrupt:
        interrupted = True
    report.summary = summary(report.rows)
    report.save(options.json)
    if report.rows:
        show.console.print(table(options, report.rows))
    show.refused(report.refused)
    if interrupted:
        show.console.print("stopped; what was measured is kept")
        return 130
    return 1 if report.refused else 0


def listed(options: MemoryOptions, device: str) -> list[Case]:
    """Every case, plain PyTorch before presto.  Weights do not grow with batch or length and are measured once."""
    if options.steps < 1 or min(options.batch) < 1 or any(seconds <= 0 for seconds in options.length):
        raise BadOption("--steps, --batch and --length: must be positive")
    sizes = OobleckConfig.named(options.config)
    lengths = [max(1, math.ceil(seconds * sizes.sample_rate / sizes.hop)) for seconds in options.length]
    lengths = lengths or [DiTConfig.named(options.config).nominal_latents]
    return [
        Case(stage, side, batch, latents, options.config, options.dtype, options.steps, device)
        for stage in dict.fromkeys(options.stages)
        for latents in lengths
        for batch in options.batch
        for side in memory_stages.sides(stage, options.compare)
        if stage != memory_stages.WEIGHTS or (latents, batch) == (lengths[0], options.batch[0])
    ]


def row(case: Case, found: dict[str, Any], before: Sequence[Row]) -> Row:
    """A row, beside plain PyTorch's of the same case where there is one."""
    made: Row = {**_what(case), **found}
    for other in before:
        same = all(other[name] == made[name] for name in ("stage", "batch", "latents"))
        if same and other["implementation"] == REFERENCE and made["peak_bytes"] > 0:
            made[PEAK_RATIO] = round(other["peak_bytes"] / made["peak_bytes"], 4)
    return made


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The whole generation's peak by implementation, at the first batch size and length."""
    found: dict[str, Any] = {}
    for each in rows:
        if each["stage"] == memory_stages.GENERATION:
            found.setdefault("generation_peak_bytes", {}).setdefault(each["implementation"], each["peak_bytes"])
            if each["implementation"] == PRESTO and PEAK_RATIO in each:
                found.setdefault("generation_peak_reference_over_presto", each[PEAK_RATIO])
    return found


def table(options: MemoryOptions, rows: Sequence[Row]) -> Table:
    columns = ("stage", "by", "batch", "latents", "weights MB", "resting MB", "peak MB", "reference/it")
    cells = [
        (
            each["stage"],
            each["implementation"],
            each["batch"],
            each["latents"],
            *(show.number(each[name] / 1e6) for name in ("weights_bytes", "resting_bytes", "peak_bytes")),
            show.times(each.get(PEAK_RATIO)),
        )
        for each in rows
    ]
    return show.table(f"memory, {options.config}, {options.dtype}, {options.steps} steps", columns, cells, left=2)


def _what(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in ("stage", "batch", "latents", "implementation")}
