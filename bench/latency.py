"""`python -m bench latency`: one generation of 32 s, prompt to waveform: the steps by every implementation, interleaved
in one run, then the prompt's embedding, the decoder and the mono-to-stereo module, and their sums against the targets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from rich.table import Table
from torch import nn

from bench import counting_dit, cuda, machine, measure, results, show, stages, targets
from bench.cli import BadOption, option
from bench.generation import Generation, Implementation, Setup
from bench.names import COMPILE, GRAPH, PRESTO, REFERENCE, SCHEDULED
from bench.results import Report, Row, ratio_fields, timing_fields

RATIOS = {
    "reference_over_presto": (REFERENCE, PRESTO),
    "compile_over_presto": (COMPILE, PRESTO),
    "scheduled_over_full": (SCHEDULED, PRESTO),
    "reference_over_scheduled": (REFERENCE, SCHEDULED),
}


@dataclass(frozen=True)
class LatencyOptions:
    """One generation, prompt to waveform; its steps by plain PyTorch, torch.compile, presto, with dropped blocks."""

    config: str = option("presto-32s", "model sizes", choices=("presto-32s", "tiny"))
    steps: int = option(4, "sampler steps")
    dtype: str = option("bf16", "dtype of the model", choices=tuple(machine.DTYPES))
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    guidance: float = option(1.0, "classifier-free guidance scale; unless 1, two samples a step on both sides")
    compile: bool = option(True, "torch.compile of the whole reference as a second baseline")
    around: bool = option(True, "also the prompt, the decoder, the mono-to-stereo module, and the totals")
    rounds: int = option(100, "rounds at most")
    seconds: float = option(120.0, "seconds of timing the steps, to the end of the round; at least two rounds")
    json: str | None = option(None, "write the results to this file, round by round")


def run(options: LatencyOptions) -> int:
    """Checks, times and prints; writes the JSON after every round. Exit status 1 if an implementation was refused."""
    generation, report = prepare(options)
    device = generation.setup.device
    interrupted = False
    try:
        with torch.no_grad():
            found = implementations(generation, options, report)
            interrupted = time_steps(generation, found, options, report)
            if device.type == "cuda" and not interrupted:
                interrupted = time_one_graph(generation, found, options, report)
            if options.around and not interrupted:
                interrupted = time_around(generation, options, report)
    except KeyboardInterrupt:
        interrupted = True
    _finish(options, report, device)
    if interrupted:
        show.console.print("stopped; what was measured is kept")
        return 130
    return 1 if report.refused else 0


@torch.no_grad()
def prepare(options: LatencyOptions, bench: str = "latency") -> tuple[Generation, Report]:
    """The ceilings of this machine, and a generation with random weights."""
    if options.steps < 1:
        raise BadOption(f"--steps: must be at least 1, got {options.steps}")
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
        report.rows = step_rows(generation, found, samples, report.meta["ceilings"])
        report.summary.update(_summary(samples))
        report.meta["timed_seconds"] = round(time.perf_counter() - started, 1)
        report.save(options.json)

    with show.rounds(f"{options.steps} steps x {len(measures)} implementations") as on_progress:
        samples = measure.interleave(
            measures,
            parts=options.steps,
            rounds=options.rounds,
            seconds=options.seconds,
            min_rounds=2,
            warmup=0 if on_cpu else 3,
            on_progress=on_progress,
            on_round=keep,
        )
    keep(samples)
    if report.rows:
        show.console.print(step_table(generation, report.rows))
    return samples.interrupted


def time_one_graph(
    generation: Generation, found: dict[str, Implementation], options: LatencyOptions, report: Report
) -> bool:
    """All steps and the sampler between them in one CUDA graph; returns whether Ctrl-C ended it."""
    measures: dict[str, measure.Measure] = {}
    with show.stage("capturing each generation as one CUDA graph"):
        for name, made in found.items():
            try:
                measures[name] = cuda.graph_timer([partial(generation.walk, made)])
            except Exception as error:
                report.refuse(error, implementation=f"{name}, one graph")
    with show.rounds("one graph a generation") as on_progress:
        samples = measure.interleave(
            measures, rounds=options.rounds, seconds=options.seconds / 3, warmup=3, on_progress=on_progress
        )
    if samples.rounds:
        report.summary["one_graph_ms"] = {name: _rounded(samples.percentile(name, 50)) for name in samples.times}
        for ratio, (over, under) in RATIOS.items():
            report.summary.update(ratio_fields(f"{ratio}_one_graph", measure.paired_ratio(samples, over, under)))
        report.save(options.json)
    return samples.interrupted


def time_around(generation: Generation, options: LatencyOptions, report: Report) -> bool:
    """The stages around the steps, and on CUDA noise to waveform in one graph; returns whether Ctrl-C ended it."""
    device = generation.setup.device
    with show.stage("decoder and mono-to-stereo module: random weights"):
        made = stages.prepare(generation)
    # Not refused: a GPU runner may have no text encoder and no diffusers, and is right to time the rest.
    report.summary["stages_missing"] = {name: str(reason) for name, reason in made.missing.items()}
    for name, reason in made.missing.items():
        show.console.print(f"{name}: not timed, {reason}", markup=False)
    timer = cuda.event_timer if device.type == "cuda" else measure.cpu_timer
    measures = {name: timer(call) for name, call in made.calls.items()}
    if stages.PROMPT in measures:  # its tokens are made on the host: the clock sees all of it
        measures[stages.PROMPT] = measure.cpu_timer(_waited(made.calls[stages.PROMPT], device))
    if device.type == "cuda" and stages.latents_fit(generation):
        with show.stage("capturing noise to waveform as one CUDA graph"):
            for name, call in stages.engine_calls(generation, made, options.steps).items():
                try:
                    call()
                    measures[f"{name}{GRAPH}"] = cuda.event_timer(call)
                except Exception as error:
                    report.refuse(error, stage=f"{name}, one graph")
    with show.rounds("prompt, decode, stereo") as on_progress:
        samples = measure.interleave(
            measures,
            rounds=options.rounds,
            seconds=options.seconds / 3,
            min_rounds=2,
            warmup=1 if device.type == "cpu" else 3,
            on_progress=on_progress,
        )
    medians = {name: _rounded(samples.percentile(name, 50)) for name in samples.times}
    found = {name: value for name, value in medians.items() if value is not None}
    report.summary["stages_ms"] = {name: value for name, value in found.items() if not name.endswith(GRAPH)}
    report.summary["waveform_one_graph_ms"] = {
        name.removesuffix(GRAPH): value for name, value in found.items() if name.endswith(GRAPH)
    }
    report.summary.update(
        ratio_fields(
            "decode_diffusers_over_presto",
            measure.paired_ratio(samples, stages.DECODE_REFERENCE, stages.DECODE),
        )
    )
    report.save(options.json)
    return samples.interrupted


def step_rows(
    generation: Generation, found: dict[str, Implementation], samples: measure.Samples, ceilings: dict[str, Any]
) -> list[Row]:
    """A row an implementation and step, and one for all steps together."""
    rows = []
    peak = ceilings["matmul_tflops"][generation.setup.dtype]
    for part in (*range(len(generation.sigmas)), None):
        for name in samples.times:
            p50 = samples.percentile(name, 50, part)
            if p50 is None:
                continue
            steps = range(len(generation.sigmas)) if part is None else (part,)
            blocks = [found[name.removesuffix(GRAPH)].blocks(i) for i in steps]
            flops = sum(counting_dit.model_flops(generation.counts(b)) for b in blocks)
            reference = REFERENCE + (GRAPH if name.endswith(GRAPH) else "")
            rows.append(
                {
                    "implementation": name,
                    "step": "all" if part is None else part,
                    "sigma": None if part is None else generation.sigmas[part],
                    "blocks": sum(blocks),
                    **timing_fields(samples, name, part),
                    **ratio_fields("reference_over_this", measure.paired_ratio(samples, reference, name, part)),
                    "flops": flops,
                    "tflops": flops / p50 / 1e9,
                    "share_of_matmul_ceiling": flops / p50 / 1e9 / peak,
                }
            )
    return rows


def step_table(generation: Generation, rows: list[Row]) -> Table:
    setup = generation.setup
    columns = ("step", "implementation", "sigma", "blocks", "p50 ms", "p95 ms", "reference/it", "TFLOP/s", "of matmul")
    cells = [
        (
            row["step"],
            row["implementation"],
            show.number(row["sigma"]),
            row["blocks"],
            show.number(row["ms_p50"]),
            show.number(row["ms_p95"]),
            show.ratio(row, "reference_over_this"),
            show.number(row["tflops"]),
            show.percent(row["share_of_matmul_ceiling"]),
        )
        for row in rows
    ]
    title = f"{setup.config}, {setup.dtype}, batch {setup.batch}, {generation.config.nominal_latents} latents"
    title += f", {rows[-1]['rounds']} rounds"
    return show.table(title, columns, cells, left=2)


def _summary(samples: measure.Samples) -> dict[str, Any]:
    """The quoted ratios, of sums over the steps alone, in and outside of CUDA graphs, and the sums themselves."""
    summary: dict[str, Any] = {"rounds": samples.rounds}
    for mode in ("", GRAPH):
        for ratio, (over, under) in RATIOS.items():
            summary.update(ratio_fields(ratio + mode, measure.paired_ratio(samples, over + mode, under + mode)))
    summary["steps_ms"] = {name: _rounded(samples.percentile(name, 50)) for name in samples.times}
    return summary


def _finish(options: LatencyOptions, report: Report, device: torch.device) -> None:
    """The last lines: ratios, totals, targets, refusals; and the file once more with the totals and targets in it."""
    summary = report.summary
    around = summary.get("stages_ms", {})
    steps_ms = summary.get("one_graph_ms", {}).get(PRESTO) or summary.get("steps_ms", {}).get(PRESTO)
    summary["total_ms"] = stages.totals(around, steps_ms)
    # What the product does is one graph of all but the prompt; elsewhere the sum of the stages stands for it.
    whole = {
        name: value + around.get(stages.PROMPT, 0.0) for name, value in summary.get("waveform_one_graph_ms", {}).items()
    }
    summary["targets"] = targets.judge(summary["total_ms"] | whole, config=options.config, device_type=device.type)
    report.save(options.json)
    if around:
        rows = [(name, show.number(value)) for name, value in around.items()]
        rows += [(f"all {options.steps} steps, presto", show.number(steps_ms))]
        rows += [(f"total, {name}", show.number(value)) for name, value in summary["total_ms"].items()]
        rows += [(f"total, {name}, one graph", show.number(value)) for name, value in whole.items()]
        show.console.print(show.table("prompt to waveform", ("stage", "p50 ms"), rows))
    for name, value in summary.items():
        if isinstance(value, float) and f"{name}_interval" in summary:
            low, high = summary[f"{name}_interval"]
            noise = "" if show.is_clear(summary, name) else f" {show.UNSURE} uncertain"
            show.console.print(f"{name:36} {value:.3f}   (95 %: {low:.3f} to {high:.3f}){noise}")
    for target in summary["targets"]:
        show.console.print(f"{target['name']} {target['ms']} ms: {target['verdict']}")
    show.refused(report.refused)


def _waited(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    def waited() -> object:
        result = call()
        machine.synchronize(device)
        return result

    return waited


def _by_part(timers: list[measure.Measure]) -> measure.Measure:
    return lambda part: timers[part](0)


def _milliseconds(function: Callable[[], object], device: torch.device) -> float:
    machine.synchronize(device)
    started = time.perf_counter()
    function()
    machine.synchronize(device)
    return (time.perf_counter() - started) * 1e3


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 4)
