"""`python -m bench latency`: prompt to waveform as the product makes it, stage by stage, warm and cold; and one
generation's steps by every implementation, interleaved in one run.  docs/bench/latency.md says what each figure means.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from bench import comparison, cuda, machine, measure, product_run, product_stages, results, show, targets, telemetry
from bench.cli import BadOption, option
from bench.generation import Generation, Implementation, Setup
from bench.names import COMPILE, GRAPH, PRESTO, REFERENCE, SCHEDULED
from bench.results import Report
from bench.telemetry import Watch


@dataclass(frozen=True)
class LatencyOptions:
    """One generation, prompt to waveform: the product's stages, and its steps beside plain PyTorch's."""

    config: str = option("presto-32s", "model sizes, random weights", choices=("presto-32s", "tiny"))
    checkpoint: str | None = option(None, "time this checkpoint instead (a name, a folder); nothing is compared")
    steps: int | None = option(None, "sampler steps; without it 4, or the checkpoint's own")
    dtype: str | None = option(
        None, "dtype of the model; without it bf16, or what the checkpoint loads as", choices=tuple(machine.DTYPES)
    )
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    guidance: float | None = option(None, "classifier-free guidance; without it 1 (none), or the checkpoint's own")
    layers: str = option(
        "own", "blocks the product runs: by its own schedule, all, or by the default one", choices=product_stages.LAYERS
    )
    length: float | None = option(None, "seconds of audio the product makes; without it 32 (tiny: its nominal length)")
    batch: tuple[int, ...] = option((1,), "batch sizes of the product")
    compare: bool = option(True, "the steps by plain PyTorch, torch.compile and presto; the decoder by diffusers")
    compile: bool = option(True, "torch.compile of the whole reference as a second baseline")
    product: bool = option(True, "the product's stages and total")
    cold: bool = option(True, "cold starts and peak memory, in fresh processes")
    cold_runs: int = option(3, "cold starts")
    rounds: int = option(100, "rounds at most (a p99 needs 368)")
    seconds: float = option(120.0, "seconds of timing each part, to the end of the round; at least two rounds")
    interval: float = option(0.02, "stop when the product's median is known within ± this share; 0: never")
    json: str | None = option(None, "write the results to this file, round by round")


def run(options: LatencyOptions) -> int:
    """Times and prints; writes the JSON after every round. Exit status 1 if an implementation was refused."""
    device = machine.pick_device(options.device)
    options = resolved(options)
    watched = telemetry.watch(device)
    spec = specified(options, device)
    made = product_stages.load(spec) if options.checkpoint is not None else None  # first of all: the name may be wrong
    generation = None
    if options.compare and made is None:
        generation, report = prepare(options)
    else:
        report = results.start("latency", options, device, [options.dtype or _dtype(device)])
    interrupted = False
    try:
        if generation is not None:
            interrupted = compare(generation, options, report, watched)
            generation = None  # its weights make room
        if options.product and not interrupted:
            if made is None:
                with show.stage(f"{options.config}: the pipeline, random weights"):
                    made = product_stages.load(spec)
            interrupted = product_run.time_product(
                made,
                options.batch,
                report,
                watched,
                rounds=options.rounds,
                seconds=options.seconds,
                interval=options.interval,
                json=options.json,
            )
            made = None
            if device.type == "cuda":
                torch.cuda.empty_cache()  # room for the processes to come
        if options.cold and options.product and not interrupted:
            product_run.time_cold(spec, options.batch, options.cold_runs, report, options.json)
    except KeyboardInterrupt:
        interrupted = True
    watched.note(report.meta)
    _finish(options, report, device)
    if interrupted:
        show.console.print("stopped; what was measured is kept")
        return 130
    return 1 if report.refused else 0


def resolved(options: LatencyOptions) -> LatencyOptions:
    """With what follows from the others filled in; of a checkpoint, what it does not say itself stays None."""
    for name in ("rounds", "cold_runs", "steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise BadOption(f"--{name.replace('_', '-')}: must be at least 1, got {value}")
    if min(options.batch) < 1 or len(set(options.batch)) < len(options.batch):
        raise BadOption(f"--batch: sizes of at least 1, each once; got {' '.join(map(str, options.batch))}")
    if options.length is not None and options.length <= 0:
        raise BadOption(f"--length: must be positive, got {options.length}")
    if options.checkpoint is not None:
        return options
    guidance = 1.0 if options.guidance is None else options.guidance
    return dataclasses.replace(options, steps=options.steps or 4, dtype=options.dtype or "bf16", guidance=guidance)


def specified(options: LatencyOptions, device: torch.device) -> product_stages.Spec:
    """The pipeline these options ask for."""
    return product_stages.Spec(
        config=options.config,
        checkpoint=options.checkpoint,
        device=device.type,
        dtype=options.dtype,
        steps=options.steps,
        guidance=options.guidance,
        layers=options.layers,
        seconds=options.length,
    )


def compare(generation: Generation, options: LatencyOptions, report: Report, watched: Watch) -> bool:
    """The steps, and the decoder, by every implementation; returns whether Ctrl-C ended it."""
    limits: dict[str, Any] = {"rounds": options.rounds, "seconds": options.seconds / 3, "json": options.json}
    with torch.no_grad():
        found = implementations(generation, options, report)
        with watched:
            interrupted = time_steps(generation, found, options, report)
            if generation.setup.device.type == "cuda" and not interrupted:
                interrupted = comparison.time_one_graph(generation, found, report, **limits)
    return interrupted or comparison.time_decoders(generation, report, watched, **limits)


@torch.no_grad()
def prepare(options: LatencyOptions, bench: str = "latency") -> tuple[Generation, Report]:
    """The ceilings of this machine, and a generation with random weights."""
    options = resolved(options)
    device = machine.pick_device(options.device)
    setup = Setup(options.config, options.steps, options.dtype, options.guidance, device)
    report = results.start(bench, options, device, [options.dtype])
    with show.stage(f"{options.config}: random weights, text, modulation"):
        return Generation(setup), report


def implementations(generation: Generation, options: LatencyOptions, report: Report) -> dict[str, Implementation]:
    """The implementations that are right; one that is not is refused, reported and not timed."""
    found = {REFERENCE: Implementation(generation.reference, generation.full)}
    if options.compile:
        try:
            found[COMPILE], seconds = compile_reference(generation)
            report.summary["compile_seconds"] = round(seconds, 1)
        except Exception as error:
            report.refuse(error, implementation=COMPILE)
    found[PRESTO] = Implementation(generation.presto, generation.full)
    found[SCHEDULED] = Implementation(generation.presto, generation.scheduled)
    with show.stage("check against a wider dtype"):
        verdicts = generation.check(found)
    for name, reason in verdicts.items():
        if reason is not None:
            report.refuse(reason, implementation=name)
            del found[name]
    return found


def compile_reference(generation: Generation) -> tuple[Implementation, float]:
    """The whole reference in one static graph, and the seconds it took; raises if a later step compiles again."""
    torch._dynamo.reset()
    compiled = torch.compile(generation.reference, dynamic=False, fullgraph=True)
    made = Implementation(cast(nn.Module, compiled), generation.full)
    steps = generation.steps(made)
    with torch._dynamo.config.patch(suppress_errors=False), show.stage("torch.compile of the reference") as seconds:
        steps[0]()
        machine.synchronize(generation.setup.device)
        took = seconds()
    with torch._dynamo.config.patch(error_on_recompile=True):
        steps[-1]()
    return made, took


def time_steps(
    generation: Generation, found: dict[str, Implementation], options: LatencyOptions, report: Report
) -> bool:
    """Every step of every implementation by itself, on CUDA also as a graph; returns whether Ctrl-C ended it."""
    measures: dict[str, measure.Measure] = {}
    with show.stage("preparing"):
        for name, made in found.items():
            calls = generation.steps(made)
            if generation.setup.device.type == "cpu":
                measures[name] = _by_part([measure.cpu_timer(call) for call in calls])
                continue
            measures[name] = _by_part([cuda.event_timer(call) for call in calls])
            try:
                measures[name + GRAPH] = _by_part([cuda.graph_timer([call]) for call in calls])
            except Exception as error:
                report.refuse(error, implementation=name + GRAPH)
    started = time.perf_counter()
    report.summary["prepare_ms"] = round(_milliseconds(generation.prepare, generation.setup.device), 3)
    on_cpu = generation.setup.device.type == "cpu"

    def keep(samples: measure.Samples) -> None:
        report.rows = comparison.step_rows(generation, found, samples, report.meta["ceilings"])
        report.summary.update(comparison.step_summary(samples))
        report.meta["timed_seconds"] = round(time.perf_counter() - started, 1)
        report.save(options.json)

    steps = generation.setup.steps
    with show.rounds(f"{steps} steps x {len(measures)} implementations") as on_progress:
        samples = measure.interleave(
            measures,
            parts=steps,
            rounds=options.rounds,
            seconds=options.seconds,
            min_rounds=2,
            warmup=0 if on_cpu else 3,
            on_progress=on_progress,
            on_round=keep,
        )
    keep(samples)
    if report.rows:
        show.console.print(comparison.step_table(generation, report.rows))
    return samples.interrupted


def _finish(options: LatencyOptions, report: Report, device: torch.device) -> None:
    """The last tables and lines, and the file once more with the totals and targets in it."""
    summary, described = report.summary, report.summary.get("product")
    totals = product_run.totals(report.rows)
    summary["total_ms"] = totals
    if described is not None:
        summary["targets"] = targets.judge(
            totals,
            config=described["name"],
            device_type=device.type,
            seconds=described["seconds"],
            device=report.meta["device"],
        )
    report.save(options.json)
    if described is not None:
        show.console.print(product_run.product_table(described, report.rows))
        for line in product_run.product_lines(report.rows):
            show.console.print(line)
        if "cold" in report.meta:
            show.console.print(product_run.cold_table(report.rows, options.batch[0]))
            show.console.print(product_run.cold_line(report.meta["cold"]))
    for name, value in summary.items():
        if isinstance(value, float) and f"{name}_interval" in summary:
            low, high = summary[f"{name}_interval"]
            noise = "" if show.is_clear(summary, name) else f" {show.UNSURE} uncertain"
            show.console.print(f"{name:36} {value:.3f}   (95 %: {low:.3f} to {high:.3f}){noise}")
    if described is not None:
        show.console.print(targets.table(summary["targets"]))
    show.telemetry(report.meta)
    show.refused(report.refused)


def _dtype(device: torch.device) -> str:
    """What a checkpoint loads as where it is not said."""
    return "bf16" if device.type == "cuda" else "fp32"


def _by_part(timers: list[measure.Measure]) -> measure.Measure:
    return lambda part: timers[part](0)


def _milliseconds(function: Callable[[], object], device: torch.device) -> float:
    machine.synchronize(device)
    started = time.perf_counter()
    function()
    machine.synchronize(device)
    return (time.perf_counter() - started) * 1e3
