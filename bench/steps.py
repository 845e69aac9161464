"""`python -m bench steps`: what each step of a generation costs, and where the time of one step goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import cuda, figures, flame, latency, machine, op_profile, roofline, show, step_plots, step_rows, walks
from bench.cli import BadOption, option
from bench.generation import Generation, Implementation
from bench.names import GRAPH, PRESTO, REFERENCE
from bench.op_profile import Profile
from bench.results import Report, Row, write_text


@dataclass(frozen=True)
class StepsOptions:
    """The cost of each step, and one step taken apart by kind of op: plain PyTorch beside presto, beside its floor."""

    config: str = option("presto-32s", "model sizes", choices=("presto-32s", "tiny"))
    steps: int = option(4, "sampler steps")
    dtype: str = option("bf16", "dtype of the model", choices=tuple(machine.DTYPES))
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    guidance: float = option(1.0, "classifier-free guidance scale; unless 1, two samples a step on both sides")
    step: int = option(0, "the step to look into, all blocks run")
    rounds: int = option(20, "rounds at most")
    seconds: float = option(45.0, "seconds of timing the steps, to the end of the round; at least two rounds")
    profiles: int = option(3, "how often the one step is profiled on each side")
    devices: tuple[str, ...] = option(roofline.DEVICES, "GPUs to predict from datasheets", choices=roofline.DEVICES)
    device_numbers: tuple[str, ...] = option((), "more devices to predict, each name:GB/s:TFLOP/s")
    efficiency: tuple[float, ...] = option(
        (0.9, 0.75), "shares of bandwidth and of the matmul rate that predictions assume, beside the bound at 1"
    )
    plot: str | None = option(None, "draw the step as a waterfall of its kinds to this .png, .svg or .pdf")
    plot_roofline: str | None = option(None, "draw every kind in the device's roofline to this .png, .svg or .pdf")
    flame: str | None = option(None, "draw the step's nested ranges by time to this .svg or .html")
    trace: str | None = option(None, "write a Chrome trace (Perfetto) of one generation to this .json")
    kernels: str | None = option(None, "write the profiler's own table, operators and kernels, to this text file")
    nsight: bool = option(False, "time nothing: one generation with NVTX ranges for Nsight Systems to record (CUDA)")
    json: str | None = option(None, "write the results to this file")


def run(options: StepsOptions) -> int:
    """Prints the tables and writes what was asked for. Exit status 1 where an implementation was refused."""
    predicted = check(options)
    as_latency = latency.LatencyOptions(
        config=options.config,
        steps=options.steps,
        dtype=options.dtype,
        device=options.device,
        guidance=options.guidance,
        compile=False,
        rounds=options.rounds,
        seconds=options.seconds,
        json=options.json,
    )
    generation, report = latency.prepare(as_latency, "steps")
    try:
        with torch.no_grad():
            found = latency.implementations(generation, as_latency, report)
            if options.nsight:
                walks.for_nsight(generation, found)
            else:
                if latency.time_steps(generation, found, as_latency, report):
                    raise KeyboardInterrupt
                report.summary["predicted"] = _predict(generation, options, predicted)
                profiles = profile_step(generation, found, options, report)
                _say(generation, options, report)
                _draw(options, report, profiles)
                if options.kernels is not None and PRESTO in found:
                    walks.write_kernels(options.kernels, generation, found[PRESTO])
                if options.trace is not None:
                    walks.write_trace(options.trace, generation, found)
    except KeyboardInterrupt:
        report.save(options.json)
        show.console.print("stopped; what was measured is kept")
        return 130
    show.refused(report.refused)
    return 1 if report.refused else 0


def check(options: StepsOptions) -> list[roofline.Ceiling]:
    """Refuses what could not be done at the end before anything is timed; the devices to predict."""
    if not 0 <= options.step < options.steps:
        raise BadOption(f"--step: must be from 0 to {options.steps - 1}, got {options.step}")
    if options.profiles < 1:
        raise BadOption(f"--profiles: must be at least 1, got {options.profiles}")
    if options.nsight and machine.pick_device(options.device).type != "cuda":
        raise BadOption("--nsight: needs CUDA; on a CPU use --trace FILE.json")
    for flag, path in (("--plot", options.plot), ("--plot-roofline", options.plot_roofline)):
        figures.check_path(path, flag)
    if options.flame is not None and Path(options.flame).suffix not in flame.FORMATS:
        raise BadOption(f"--flame: {options.flame} must end in {' or '.join(flame.FORMATS)}")
    roofline.efficiency_of(options.efficiency)
    given = [roofline.from_numbers(text, options.dtype) for text in options.device_numbers]
    sheets = [made for name in dict.fromkeys(options.devices) for made in roofline.from_datasheet(name, options.dtype)]
    names = [made.device for made in given]
    if len(set(names)) < len(names) or set(names) & {made.device for made in sheets}:
        raise BadOption(f"--device-numbers: every device needs a name of its own, got {', '.join(names)}")
    return [*sheets, *given]


def profile_step(
    generation: Generation, found: dict[str, Implementation], options: StepsOptions, report: Report
) -> dict[str, list[Profile]]:
    """The profiles of each side, on CUDA also of its graph's replay; their rows and what they say go to the report."""
    device = generation.setup.device
    sides = [name for name in (REFERENCE, PRESTO) if name in found]
    calls = {name: generation.steps(found[name])[options.step] for name in sides}
    whole = {row["implementation"]: row["ms_p50"] for row in report.rows if row["step"] == options.step}
    graphs = {name: _graph(calls[name]) for name in sides if name + GRAPH in whole}  # what could be captured was timed
    profiles: dict[str, list[Profile]] = {}
    timed = list(report.rows)
    with show.rounds(f"profiling step {options.step}") as on_progress:
        for index in range(options.profiles):
            for name in sides:
                with op_profile.marked(found[name].model):
                    eager = op_profile.profile(calls[name], device)
                profiles.setdefault(name, []).append(eager)
                if name in graphs:
                    replayed = op_profile.profile_replay(graphs[name].replay, eager.work, device)
                    profiles.setdefault(name + GRAPH, []).append(replayed)
            rows = _rows(generation, found, options, report.meta, whole, profiles)
            report.rows = timed + rows
            report.summary |= step_rows.bound(rows) | step_rows.floor_summary(rows)
            report.save(options.json)
            on_progress((index + 1) / options.profiles)
    return profiles


def _rows(
    generation: Generation,
    found: dict[str, Implementation],
    options: StepsOptions,
    meta: dict[str, Any],
    whole: dict[str, float],
    profiles: dict[str, list[Profile]],
) -> list[Row]:
    ceiling = roofline.measured(meta, options.dtype)
    rows = []
    for name, taken in profiles.items():
        counts = generation.counts(found[name.removesuffix(GRAPH)].blocks(options.step))
        rows += step_rows.kind_rows(name, options.step, taken, counts, ceiling, whole.get(name))
    return rows


def _graph(call: cuda.Call) -> torch.cuda.CUDAGraph:
    cuda.warm_up(call)
    return cuda.capture([call])[0]


def _predict(generation: Generation, options: StepsOptions, ceilings: Sequence[roofline.Ceiling]) -> dict[str, object]:
    """What the step and whole generations would cost on other devices, and at least on this one."""
    indices = range(options.steps)
    generations = {
        "full": [generation.counts(len(generation.full.step(i).blocks)) for i in indices],
        "scheduled": [generation.counts(len(generation.scheduled.step(i).blocks)) for i in indices],
    }
    step = generations["full"][options.step]
    return roofline.predict(ceilings, step, generations, roofline.efficiency_of(options.efficiency))


def _say(generation: Generation, options: StepsOptions, report: Report) -> None:
    """The tables and the lines below them."""
    rows, summary = [row for row in report.rows if "kind" in row], report.summary
    device_type = generation.setup.device.type
    if "shown" in summary:
        name = summary["shown"]
        of = f"step {options.step}, all blocks ({options.config}, {options.dtype}"
        calls = "eager calls" if not name.endswith(GRAPH) else "CUDA graphs, replayed"
        calls = calls if device_type == "cuda" else "calls are operators, gaps are Python"
        show.console.print(step_rows.sides_table(f"inside {of}; {calls})", rows, name, device_type))
        show.console.print(step_rows.floor_table(f"{name} against this device's ceilings, {of})", rows, name))
        if device_type == "cuda" and not name.endswith(GRAPH):
            show.console.print("the graph's kernels differ from the eager ones by name or order: no kinds in the graph")
    if summary["predicted"]:
        show.console.print(roofline.predicted_table(summary["predicted"], options.steps))
    for line in (*step_rows.bound_lines(summary), *step_rows.floor_lines(summary, device_type)):
        show.console.print(line)


def _draw(options: StepsOptions, report: Report, profiles: dict[str, list[Profile]]) -> None:
    """The pictures that were asked for."""
    if not profiles:  # both sides were refused
        return
    rows = [row for row in report.rows if "kind" in row]
    title = f"Step {options.step}, all blocks: {options.config}, {options.dtype}, {report.meta['device']}"
    if options.plot is not None:
        step_plots.waterfall(options.plot, rows, title, report.meta["device_type"])
    if options.plot_roofline is not None:
        step_plots.roofline(options.plot_roofline, rows, roofline.measured(report.meta, options.dtype), title)
    if options.flame is not None:
        eager = {name: taken[-1] for name, taken in profiles.items() if not name.endswith(GRAPH)}
        write_text(options.flame, flame.page(eager, title, html=options.flame.endswith(".html")))
