"""`python -m bench scaling`: what a step costs against length, batch, depth and steps, and how it grows.

Every axis by itself around one base point, the points of all axes and implementations interleaved in one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table

from bench import cuda, figures, fits, machine, measure, results, scaling_plot, show
from bench.cli import BadOption, option
from bench.generation import Generation, Setup
from bench.names import COMPILE, PRESTO, REFERENCE
from bench.results import Report, Row, ratio_fields, timing_fields
from bench.scaling_cases import BATCH, DECODE, DEPTH, LENGTH, STAGES, STEP, STEPS, Cost, Decoder, Point, Steps
from presto_models import DiTConfig

UNITS = {LENGTH: "latents", BATCH: "samples", DEPTH: "blocks", STEPS: "steps"}
BASE_STEPS = 4
SHORT_MS = 2.0  # a call whose floor is below this is repeated, so that the clock's grain vanishes


@dataclass(frozen=True)
class ScalingOptions:
    """Cost against length, batch, depth and steps: the exponent and the fixed part, presto beside plain PyTorch."""

    config: str = option("presto-32s", "model sizes", choices=("presto-32s", "tiny"))
    stage: str = option(STEP, "what is timed: the DiT's steps, or the decoder", choices=tuple(STAGES))
    axes: tuple[str, ...] = option((), "axes (all that the stage has)", choices=STAGES[STEP])
    length: tuple[int, ...] = option((), "latents (1/8, 1/4, 1/2, 1 and 2 of the base, made odd)")
    batch: tuple[int, ...] = option((), "samples of a call (1 2 4 8)")
    depth: tuple[int, ...] = option((), "blocks that run (1/8, 1/4, 1/2 and all of the base)")
    steps: tuple[int, ...] = option((), "steps of a walk (1 2 4 8)")
    latents: int | None = option(None, "length at the base point; without it the config's")
    blocks: int | None = option(None, "depth at the base point; without it the config's")
    dtype: str = option("bf16", "dtype of the model", choices=tuple(machine.DTYPES))
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    compile: bool = option(False, "torch.compile of plain PyTorch as a second baseline; every point compiles anew")
    rounds: int = option(20, "rounds at most")
    seconds: float = option(180.0, "seconds of timing, to the end of the round; at least three rounds")
    plot: str | None = option(None, "draw the curves to this file")
    json: str | None = option(None, "write the results to this file, round by round")


def run(options: ScalingOptions) -> int:
    """Checks, times, prints and draws. Exit status 1 where an implementation was refused."""
    figures.check_path(options.plot)
    device = machine.pick_device(options.device)
    base = base_point(options)
    axes = points(options, base)
    report = results.start("scaling", options, device, [options.dtype])
    report.summary["base"] = {LENGTH: base.length, BATCH: base.batch, DEPTH: base.blocks, STEPS: BASE_STEPS}
    interrupted = False
    try:
        with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=256, suppress_errors=False):
            timed = prepare(options, device)
            measures, costs = prepare_points(timed, axes, report, device)
            interrupted = time_points(measures, costs, axes, options, report)
    except KeyboardInterrupt:
        interrupted = True
    if report.rows:
        show.console.print(table(report))
        for line in (*report.summary["in_words"], *report.summary["warnings"]):
            show.console.print(line, markup=False)
        if options.plot is not None:
            scaling_plot.draw(report, options.plot)
    report.save(options.json)
    show.refused(report.refused)
    if interrupted:
        show.console.print("stopped; what was measured is kept")
        return 130
    return 1 if report.refused else 0


def base_point(options: ScalingOptions) -> Point:
    """What stays as it is while one axis changes."""
    config = DiTConfig.named(options.config)
    for name, value in (("latents", options.latents), ("blocks", options.blocks)):
        if value is not None and value < 1:
            raise BadOption(f"--{name}: must be at least 1, got {value}")
    return Point(options.stage, options.latents or config.nominal_latents, 1, options.blocks or config.num_blocks, 1)


def points(options: ScalingOptions, base: Point) -> dict[str, dict[int, Point]]:
    """Axis → value → what is timed there, values increasing."""
    config = DiTConfig.named(options.config)
    fewest, most = max(1, config.keep_last), config.num_blocks
    default: dict[str, tuple[int, ...]] = {
        LENGTH: tuple(int(base.length * share) | 1 for share in (1 / 8, 1 / 4, 1 / 2, 1, 2)),
        BATCH: (1, 2, 4, 8),
        DEPTH: tuple(max(fewest, base.blocks // part) for part in (8, 4, 2, 1)),
        STEPS: (1, 2, 4, 8),
    }
    foreign = set(options.axes) - set(STAGES[options.stage])
    if foreign:
        raise BadOption(f"--axes: the stage {options.stage} has {' '.join(STAGES[options.stage])}, not {foreign.pop()}")
    found = {}
    for axis in options.axes or STAGES[options.stage]:
        values = sorted(set(getattr(options, axis) or default[axis]))
        if len(values) < 2 or values[0] < 1:
            raise BadOption(f"--{axis}: takes at least two different values of at least 1, got {values}")
        if axis == DEPTH and not fewest <= values[0] <= values[-1] <= most:
            raise BadOption(f"--depth: {options.config} runs {fewest} to {most} blocks, got {values}")
        found[axis] = {value: base.at(axis, value) for value in values}
    if not fewest <= base.blocks <= most:
        raise BadOption(f"--blocks: {options.config} runs {fewest} to {most} blocks, got {base.blocks}")
    return found


def prepare(options: ScalingOptions, device: torch.device) -> Steps | Decoder:
    """Random weights of what the stage times."""
    with show.stage(f"{options.config}: random weights"):
        if options.stage == DECODE:
            return Decoder(options.config, options.dtype, device, options.compile)
        return Steps(Generation(Setup(options.config, 1, options.dtype, 1.0, device)), options.compile)


def prepare_points(
    timed: Steps | Decoder, axes: dict[str, dict[int, Point]], report: Report, device: torch.device
) -> tuple[dict[str, measure.Measure], dict[Point, Cost]]:
    """A timer for every point and implementation that is right, and what each point must do at least.

    Correctness is judged at the cheapest point of every axis alone: a wider dtype at the largest would take longer than
    the measurement. Where `auto` chooses another kernel for a larger size, that one's tests stand for it.
    """
    every = list(dict.fromkeys(point for of_axis in axes.values() for point in of_axis.values()))
    with show.stage(f"what {len(every)} points must do at least"):
        costs = {point: timed.cost(point, report.meta["ceilings"]) for point in every}
    wrong: set[str] = set()
    with show.stage("check against a wider dtype"):
        for axis, of_axis in axes.items():
            value, point = min(of_axis.items(), key=lambda item: costs[item[1]].floor_ms)
            for name, error in timed.check(point).items():
                report.refuse(error, implementation=name, axis=axis, value=value)
                wrong.add(name)
    measures: dict[str, measure.Measure] = {}
    with show.rounds(f"preparing {len(every)} points") as on_progress:
        for index, point in enumerate(every):
            for name, call in timed.calls(point).items():
                if name in wrong:
                    continue
                try:
                    if name == COMPILE:
                        call()  # compiled now: a failure is then this one's alone
                    short = costs[point].floor_ms < SHORT_MS
                    if device.type == "cuda":
                        measures[label(point, name)] = cuda.graph_timer([call])
                    else:
                        repeats = measure.repeats_for(call, least_ms=SHORT_MS) if short else 1
                        measures[label(point, name)] = measure.cpu_timer(call, repeats=repeats)
                except Exception as error:
                    report.refuse(error, implementation=name, point=label(point, ""))
            on_progress((index + 1) / len(every))
    return measures, costs


def label(point: Point, implementation: str) -> str:
    """The name under which a point is timed; the base point is timed once for all axes it lies on."""
    return f"{point.stage} {point.length}x{point.batch}x{point.blocks}x{point.steps} {implementation}".strip()


def time_points(
    measures: dict[str, measure.Measure],
    costs: dict[Point, Cost],
    axes: dict[str, dict[int, Point]],
    options: ScalingOptions,
    report: Report,
) -> bool:
    """Interleaves all of them; fills rows and summary after every round. Whether Ctrl-C ended it."""

    def keep(samples: measure.Samples) -> None:
        report.rows = rows(samples, costs, axes, options.dtype)
        report.summary |= summarise(samples, costs, axes, report.summary["base"])
        report.save(options.json)

    with show.rounds(f"{len(measures)} points and implementations") as on_progress:
        samples = measure.interleave(
            measures, rounds=options.rounds, seconds=options.seconds, on_progress=on_progress, on_round=keep
        )
    if samples.rounds:
        keep(samples)
    return samples.interrupted


def implementations(samples: measure.Samples) -> list[str]:
    return sorted({name.split(" ", 2)[2] for name in samples.times}, key=lambda name: (name == PRESTO, name))


def rows(
    samples: measure.Samples, costs: dict[Point, Cost], axes: dict[str, dict[int, Point]], dtype: str
) -> list[Row]:
    """A row an axis, value and implementation."""
    found = []
    for axis, of_axis in axes.items():
        for value, point in of_axis.items():
            for name in implementations(samples):
                here = label(point, name)
                if here not in samples.times:
                    continue
                found.append(
                    {
                        "stage": point.stage,
                        "axis": axis,
                        "value": value,
                        "dtype": dtype,
                        "implementation": name,
                        **timing_fields(samples, here),
                        **ratio_fields(
                            "reference_over_this", measure.paired_ratio(samples, label(point, REFERENCE), here)
                        ),
                        "flops": costs[point].flops,
                        "floor_ms": costs[point].floor_ms,
                    }
                )
    return found


def summarise(
    samples: measure.Samples, costs: dict[Point, Cost], axes: dict[str, dict[int, Point]], base: dict[str, int]
) -> dict[str, Any]:
    """The fits of every axis and implementation, a sentence for each, and which of the differences say nothing.

    Args:
        base: where the fixed part's share is taken, by axis; the nearest value that was timed.
    """
    found: dict[str, Any] = {}
    words: list[str] = []
    warnings: list[str] = []
    for axis, of_axis in axes.items():
        values = list(of_axis)
        floor = fits.exponent(values, [costs[point].floor_ms for point in of_axis.values()])
        at = min(values, key=lambda value: abs(value - base[axis]))
        found[axis] = {"floor_exponent": round(floor, 4), "base": at}
        for name in implementations(samples):
            labels = [label(point, name) for point in of_axis.values()]
            if not all(here in samples.times for here in labels):
                continue
            fit = fits.fit(values, np.stack([samples.ms(here) for here in labels], axis=1), at)
            if fit is None:
                continue
            found[axis][name] = {
                **ratio_fields("exponent", fit.exponent),
                "coefficient": fit.coefficient,
                **ratio_fields("fixed_ms", fit.fixed_ms),
                **ratio_fields("fixed_share", fit.fixed_share),
                "largest_deviation": round(fit.deviation, 4),
                "rounds": fit.exponent.rounds,
            }
            words.append(f"{axis}, {name}: {sentence(axis, fit, floor, at)}")
            if fits.unsure(fit.exponent.median - floor, fit.exponent):
                warnings.append(f"warning: {axis}, {name}: exponent not told from the floor's: its interval is wider")
        unsure = [str(value) for value, point in of_axis.items() if _unsure_ratio(samples, point)]
        if unsure:
            warnings.append(
                f"warning: {axis} {', '.join(unsure)}: {REFERENCE} / {PRESTO} not told from 1: its interval is wider"
            )
    return {"axes": found, "in_words": words, "warnings": warnings}


def sentence(axis: str, fit: fits.Fit, floor: float, base: int) -> str:
    """How the cost grows, in words."""
    p, share = fit.exponent, fit.fixed_share
    fixed = f"fixed cost {100 * share.median:.0f} %" if share.low > 0 else "no fixed cost seen"
    return (
        f"ms grows as {axis}^{p.median:.2f} ({p.low:.2f} to {p.high:.2f}), at most {100 * fit.deviation:+.0f} % off; "
        f"the counted floor as {axis}^{floor:.2f}; {fixed} ({100 * share.low:.0f} to {100 * share.high:.0f}) at "
        f"{base} {UNITS[axis]}"
    )


def _unsure_ratio(samples: measure.Samples, point: Point) -> bool:
    """Whether the interval of reference / presto is wider than the difference from 1."""
    ratio = measure.paired_ratio(samples, label(point, REFERENCE), label(point, PRESTO))
    return ratio is not None and fits.unsure(ratio.median - 1, ratio)


def table(report: Report) -> Table:
    columns = ("axis", "value", "implementation", "p50 ms", "95 %", "reference/it", "floor ms", "of floor")
    cells = [
        (
            row["axis"],
            row["value"],
            row["implementation"],
            show.number(row["ms_p50"]),
            " to ".join(str(show.number(end)) for end in row["ms_p50_interval"]),
            _ratio(row),
            show.number(row["floor_ms"]),
            show.percent(row["floor_ms"] / row["ms_p50"]),
        )
        for row in report.rows
    ]
    settings = report.meta["settings"]
    title = f"{settings['stage']} by size, {settings['config']}, {settings['dtype']}, {report.rows[0]['rounds']} rounds"
    return show.table(title, columns, cells, left=3)


def _ratio(row: Row) -> str | None:
    """1.32x; with a question mark where its interval is wider than what it differs from 1."""
    if row["implementation"] == REFERENCE or "reference_over_this" not in row:
        return None
    (low, high), ratio = row["reference_over_this_interval"], row["reference_over_this"]
    return f"{show.times(ratio)}{'?' if high - low > abs(ratio - 1) else ''}"
