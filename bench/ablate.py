"""`python -m bench ablate`: what each optimisation is worth: switched off, one at a time, beside everything on and
beside plain PyTorch, on the same weights, all interleaved in one run.

A generation has three parts: what is prepared before the first step, the steps with the noise between them, and the
decoder. An ablation is timed on the parts it touches; its total is made of these and of the other parts with everything
on, round by round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table

from bench import ablate_plot, cuda, figures, fits, machine, measure, results, show
from bench.ablate_check import Judge
from bench.ablations import ABLATIONS, ALL_OFF, ALL_ON, BITWISE, Ablation, as_it_is, only
from bench.cli import BadOption, option
from bench.names import PRESTO, REFERENCE
from bench.product import PARTS, Product, random_product, shipped_product
from bench.results import Report, Row, ratio_fields, sample_fields

TOTAL = "total"
SHORT_MS = 20.0  # a call that is shorter is repeated, so that the clock's grain vanishes

EVERYTHING_ON = Ablation("everything on", as_it_is, BITWISE, only(*PARTS))


@dataclass(frozen=True)
class AblateOptions:
    """What each optimisation is worth: each switched off, one at a time, against everything on and everything off."""

    config: str = option("presto-32s", "model sizes, random weights", choices=("presto-32s", "tiny"))
    checkpoint: str | None = option(None, "instead of --config a checkpoint: shipped, a folder or a hub id")
    only: tuple[str, ...] = option((), "these ablations (all)", choices=tuple(ABLATIONS))
    steps: int = option(4, "sampler steps")
    audio: float | None = option(None, "seconds of audio; without it the length the model is made for")
    dtype: str = option("bf16", "dtype of the model", choices=tuple(machine.DTYPES))
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    rounds: int = option(20, "rounds at most")
    seconds: float = option(240.0, "seconds of timing, to the end of the round; at least three rounds")
    plot: str | None = option(None, "draw what each is worth to this file")
    json: str | None = option(None, "write the results to this file, round by round")


def run(options: AblateOptions) -> int:
    """Checks, times, prints and draws. Exit status 1 where an ablation's output is not what it may be."""
    figures.check_path(options.plot)
    if options.steps < 1:
        raise BadOption(f"--steps: must be at least 1, got {options.steps}")
    device = machine.pick_device(options.device)
    interrupted = False
    with torch.no_grad():
        product = prepare(options, device)
        report = results.start("ablate", options, device, [options.dtype])
        report.summary |= {"latents": product.plan.length, "blocks": product.blocks, "not_here": {}}
        try:
            found = variants(product, options, report)
            interrupted = time_parts(product, found, options, report, device)
        except KeyboardInterrupt:
            interrupted = True
    if report.rows:
        show.console.print(table(report))
        for line in report.summary["warnings"]:
            show.console.print(line, markup=False)
        if options.plot is not None:
            ablate_plot.draw(report, options.plot)
    for name, reason in report.summary["not_here"].items():
        show.console.print(f"{name}: {reason}", markup=False)
    report.save(options.json)
    show.refused(report.refused)
    if interrupted:
        show.console.print("stopped; what was measured is kept")
        return 130
    return 1 if report.refused else 0


def prepare(options: AblateOptions, device: torch.device) -> Product:
    """The model and the generation that is timed."""
    settings: dict[str, Any] = {
        "steps": options.steps,
        "dtype": options.dtype,
        "device": device,
        "audio": options.audio,
    }
    with show.stage(options.checkpoint or f"{options.config}: random weights"):
        if options.checkpoint is None:
            return random_product(options.config, **settings)
        try:
            return shipped_product(options.checkpoint, **settings)
        except (OSError, ValueError) as error:
            raise BadOption(f"--checkpoint {options.checkpoint}: {error}") from error


@dataclass(frozen=True)
class Variant:
    """An ablation that can be done here and is right."""

    ablation: Ablation
    parts: tuple[str, ...]
    result: str


def variants(product: Product, options: AblateOptions, report: Report) -> dict[str, Variant]:
    """Everything on, and every ablation that was asked for, is there and is right; the others are reported."""
    chosen = options.only or tuple(ABLATIONS)
    found = {}
    with show.rounds("check against a wider dtype") as on_progress:
        judge = Judge(product, options.dtype)
        every = {ALL_ON: EVERYTHING_ON} | {name: made for name, made in ABLATIONS.items() if name in chosen}
        for index, (name, ablation) in enumerate(every.items()):
            missing = ablation.missing(product)
            if missing is not None:
                report.summary["not_here"][name] = missing
                continue
            verdict = judge(name, ablation)
            if verdict.error is None:
                found[name] = Variant(ablation, ablation.parts(product), verdict.result)
            else:
                report.refuse(verdict.error, ablation=name)
            on_progress((index + 1) / len(every))
    if ALL_ON not in found:
        return {}
    return found


def time_parts(
    product: Product, found: dict[str, Variant], options: AblateOptions, report: Report, device: torch.device
) -> bool:
    """Every variant on the parts it touches, interleaved; rows after every round. Whether Ctrl-C ended it."""
    measures: dict[str, measure.Measure] = {}
    with show.rounds("preparing") as on_progress:
        every = list(found.items())
        for index, (name, variant) in enumerate(every):
            try:
                own = {label(name, part): timer(product, variant.ablation, part, device) for part in variant.parts}
                measures |= own
            except Exception as error:
                report.refuse(error, ablation=name)
                del found[name]
            on_progress((index + 1) / len(every))
    if ALL_ON not in found:
        return False

    def keep(samples: measure.Samples) -> None:
        report.rows = rows(samples, found, options.dtype)
        report.summary |= summarise(samples, found)
        report.save(options.json)

    with show.rounds(f"{len(found) - 1} ablations, {len(measures)} parts") as on_progress:
        samples = measure.interleave(
            measures,
            rounds=options.rounds,
            seconds=options.seconds,
            warmup=0 if device.type == "cpu" else 3,  # on a CPU the check and the first timing have run each
            on_progress=on_progress,
            on_round=keep,
        )
    if samples.rounds:
        keep(samples)
    return samples.interrupted


def label(name: str, part: str) -> str:
    return f"without {name}, {part}"


def timer(product: Product, ablation: Ablation, part: str, device: torch.device) -> measure.Measure:
    """Milliseconds of one part under an ablation, which is entered and left around the clock."""
    with ablation.off(product) as made:
        timed = _timer(made.call(part), device, ablation.eager)

    def once(index: int = 0) -> float:
        with ablation.off(product):
            return timed(index)

    return once


def _timer(call: Callable[[], object], device: torch.device, eager: bool) -> measure.Measure:
    if device.type == "cuda":
        if not eager:
            return cuda.graph_timer([call])
        cuda.warm_up(call)
        return cuda.event_timer(call)
    started = time.perf_counter()
    call()
    short = (time.perf_counter() - started) * 1e3 < SHORT_MS
    return measure.cpu_timer(call, repeats=measure.repeats_for(call, least_ms=2.0) if short else 1)


def milliseconds(samples: measure.Samples, found: dict[str, Variant], name: str, part: str) -> np.ndarray:
    """One value a round; of a part that an ablation does not touch that of everything on, of the total their sum."""
    if part == TOTAL:
        return np.sum([milliseconds(samples, found, name, each) for each in PARTS], axis=0)
    return samples.ms(label(name if part in found[name].parts else ALL_ON, part))[: samples.rounds]


def rows(samples: measure.Samples, found: dict[str, Variant], dtype: str) -> list[Row]:
    """A row an ablation and part that it touches, and one for the total."""
    made = []
    for name, variant in found.items():
        for part in (*variant.parts, TOTAL):
            own, on = (milliseconds(samples, found, each, part) for each in (name, ALL_ON))
            made.append(
                {
                    "ablation": name,
                    "implementation": REFERENCE if name == ALL_OFF else PRESTO,
                    "part": part,
                    "dtype": dtype,
                    **sample_fields(own),
                    **ratio_fields("over_all_on", measure.median_interval(own / on)),
                    "lossless": variant.ablation.lossless,
                    "result": variant.result,
                }
            )
    return made


def summarise(samples: measure.Samples, found: dict[str, Variant]) -> dict[str, Any]:
    """What each saves of a generation, in ms, and of which nothing can be said."""
    saved: dict[str, Any] = {}
    unsure = []
    on = milliseconds(samples, found, ALL_ON, TOTAL)
    for name in found:
        gain = measure.median_interval(milliseconds(samples, found, name, TOTAL) - on)
        if name == ALL_ON or gain is None:
            continue
        saved[name] = ratio_fields("ms", gain)
        if fits.unsure(gain.median, gain):
            unsure.append(name)
    warning = f"warning: interval wider than what is saved, so not told from nothing: {', '.join(unsure)}"
    return {
        "rounds": samples.rounds,
        "all_on_ms": _medians(samples, found),
        "saved": saved,
        "warnings": [warning] if unsure else [],
    }


def _medians(samples: measure.Samples, found: dict[str, Variant]) -> dict[str, float]:
    parts = (*PARTS, TOTAL)
    return {part: round(float(np.median(milliseconds(samples, found, ALL_ON, part))), 4) for part in parts}


def table(report: Report) -> Table:
    """By falling gain; the time without it is that of the parts it touches."""
    columns = ("without", "parts", "off, ms", "saved ms", "95 %", "total", "result")
    on, saved = report.summary["all_on_ms"], report.summary["saved"]
    cells = []
    for name, gain in sorted(saved.items(), key=lambda item: -item[1]["ms"]):
        own = {row["part"]: row for row in report.rows if row["ablation"] == name}
        touched = [part for part in PARTS if part in own]
        low, high = gain["ms_interval"]
        cells.append(
            (
                name,
                "all" if len(touched) == len(PARTS) else "+".join(touched),
                show.number(sum(own[part]["ms_p50"] for part in touched)),
                f"{show.number(gain['ms'])}{'?' if high - low > abs(gain['ms']) else ''}",
                f"{show.number(low)} to {show.number(high)}",
                show.times(own[TOTAL]["over_all_on"]),
                own[TOTAL]["result"],
            )
        )
    settings = report.meta["settings"]
    title = f"{settings['checkpoint'] or settings['config']}, {settings['dtype']}, {report.summary['latents']} latents"
    parts = ", ".join(f"{part} {show.number(value)}" for part, value in on.items())
    title += f", {report.summary['rounds']} rounds; everything on, ms: {parts}"
    return show.table(title, columns, cells, left=2)
