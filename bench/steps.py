"""`python -m bench steps`: what each step of a generation costs, and each kind of op inside one step."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bench import counting_dit, latency, machine, op_profile, show
from bench.cli import BadOption, option
from bench.generation import Generation, Implementation
from bench.names import PRESTO, REFERENCE
from bench.results import Report, Row

SUM, WHOLE = "sum", "step, unprofiled"


@dataclass(frozen=True)
class StepsOptions:
    """The cost of each step, and of each kind of op inside one step: plain PyTorch beside presto."""

    config: str = option("presto-32s", "model sizes", choices=("presto-32s", "tiny"))
    steps: int = option(4, "sampler steps")
    dtype: str = option("bf16", "dtype of the model", choices=tuple(machine.DTYPES))
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    guidance: float = option(1.0, "classifier-free guidance scale; unless 1, two samples a step on both sides")
    step: int = option(0, "the step to look into, all blocks run")
    rounds: int = option(20, "rounds at most")
    seconds: float = option(45.0, "seconds of timing the steps, to the end of the round; at least two rounds")
    profiles: int = option(3, "how often the one step is profiled on each side")
    kernels: str | None = option(None, "write the profiler's own table, operators and kernels, to this text file")
    json: str | None = option(None, "write the results to this file")


def run(options: StepsOptions) -> int:
    """Prints the table of steps and the table of ops. Exit status 1 where an implementation was refused."""
    if not 0 <= options.step < options.steps:
        raise BadOption(f"--step: must be from 0 to {options.steps - 1}, got {options.step}")
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
            if latency.time_steps(generation, found, as_latency, report):
                raise KeyboardInterrupt
            rows = profile_step(generation, found, options, report)
            report.rows += rows
            report.summary |= bound(rows)
            report.save(options.json)
            show.console.print(op_table(options, rows))
            for line in bound_lines(report.summary):
                show.console.print(line)
            if options.kernels is not None and PRESTO in found:
                write_kernels(generation, found[PRESTO], options)
    except KeyboardInterrupt:
        report.save(options.json)
        show.console.print("stopped; what was measured is kept")
        return 130
    show.refused(report.refused)
    return 1 if report.refused else 0


def profile_step(
    generation: Generation, found: dict[str, Implementation], options: StepsOptions, report: Report
) -> list[Row]:
    """A row a kind of op and side: median over the profiles, beside what it must do at least."""
    device = generation.setup.device
    sides = [name for name in (REFERENCE, PRESTO) if name in found]
    profiles: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    with show.rounds(f"profiling step {options.step}") as on_progress:
        for index in range(options.profiles):
            for name in sides:
                call = generation.steps(found[name])[options.step]
                with op_profile.marked(found[name].model):
                    profiles[name].append(op_profile.milliseconds_by_kind(call, device))
            on_progress((index + 1) / options.profiles)
    whole = {row["implementation"]: row["ms_p50"] for row in report.rows if row["step"] == options.step}
    ceilings = report.meta["ceilings"]
    rows = []
    for name in sides:
        counts = generation.counts(found[name].blocks(options.step))
        medians = {kind: statistics.median(p.get(kind, 0.0) for p in profiles[name]) for kind in counts}
        for kind, count in counts.items():
            floor = count.floor_ms(ceilings["copy_gbs"], ceilings["matmul_tflops"][options.dtype])
            row = {"implementation": name, "step": options.step, "kind": kind, "ms_p50": medians[kind]}
            row |= {"bytes": count.bytes, "flops": count.flops, "floor_ms": floor}
            rows.append(row | {"share_of_ceiling": floor / medians[kind] if medians[kind] else None})
        for kind, total in ((SUM, sum(medians.values())), (WHOLE, whole[name])):
            rows.append({"implementation": name, "step": options.step, "kind": kind, "ms_p50": total})
    return rows


def bound(rows: list[Row]) -> dict[str, float]:
    """What fusing everything but matrix products and attention could gain at most, and what was gained.

    The bound is the reference's: all of its profile over its products and attention.  Attention of one's own may beat
    it.
    """
    summary: dict[str, float] = {}
    for name in (REFERENCE, PRESTO):
        of_kind = {row["kind"]: row["ms_p50"] for row in rows if row["implementation"] == name}
        if not of_kind:
            continue
        products = sum(of_kind[kind] for kind in counting_dit.PRODUCTS)
        summary[f"{name}_products_and_attention_ms"] = round(products, 3)
        summary[f"{name}_sum_ms"] = round(of_kind[SUM], 3)
        summary[f"{name}_other_share"] = round(1 - products / of_kind[SUM], 4)
        summary[f"{name}_step_ms"] = round(of_kind[WHOLE], 3)
    if f"{PRESTO}_step_ms" in summary:
        summary["bound"] = round(summary[f"{REFERENCE}_sum_ms"] / summary[f"{REFERENCE}_products_and_attention_ms"], 4)
        summary["gain"] = round(summary[f"{REFERENCE}_step_ms"] / summary[f"{PRESTO}_step_ms"], 4)
        summary["gain_over_bound"] = round(summary["gain"] / summary["bound"], 4)
    return summary


def bound_lines(summary: dict[str, Any]) -> list[str]:
    """The bound and how near we are, in words."""
    if "bound" not in summary:
        return []
    return [
        f"not products or attention: reference {summary['reference_other_share']:.1%}, presto "
        f"{summary['presto_other_share']:.1%} of the profile",
        f"bound by fusing alone: {summary['reference_sum_ms']:.0f} ms over "
        f"{summary['reference_products_and_attention_ms']:.0f} ms of products and attention = {summary['bound']:.3f}x",
        f"gained: {summary['gain']:.3f}x, {summary['gain_over_bound']:.2f} of the bound",
    ]


def op_table(options: StepsOptions, rows: list[Row]) -> Table:
    """Kinds of op by falling cost of the reference, their sum, and the step as timed without the profiler.

    The sum is short of the step by what runs between operators (on CUDA: gaps between kernels), and beyond it by what
    the profiler costs.
    """
    of_side: dict[str, dict[str, Row]] = {REFERENCE: {}, PRESTO: {}}
    for row in rows:
        of_side[row["implementation"]][row["kind"]] = row
    columns = ("kind of op", "reference", "presto ms", "ratio", "floor ms", "of ceiling", "MB", "GFLOP")
    cells = []
    by_cost = sorted(of_side[REFERENCE].items(), key=lambda item: (item[0] in (SUM, WHOLE), -item[1]["ms_p50"]))
    for kind, reference in by_cost:
        presto = of_side[PRESTO].get(kind, {})
        cells.append(
            (
                kind,
                show.number(reference["ms_p50"]),
                show.number(presto.get("ms_p50")),
                show.times(reference["ms_p50"] / presto["ms_p50"]) if presto.get("ms_p50") else None,
                show.number(reference.get("floor_ms")),
                show.percent(presto.get("share_of_ceiling")),
                show.number(reference["bytes"] / 1e6) if "bytes" in reference else None,
                show.number(reference["flops"] / 1e9) if "flops" in reference else None,
            )
        )
    return show.table(f"inside step {options.step}, all blocks ({options.config}, {options.dtype})", columns, cells)


def write_kernels(generation: Generation, presto: Implementation, options: StepsOptions) -> None:
    """The profiler's table of one generation by presto: every operator and, on CUDA, every kernel."""
    device = generation.setup.device
    with op_profile.profiled(device) as recorded:
        generation.walk(presto)
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    text = recorded.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=80)
    path = Path(str(options.kernels))
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text + "\n")
    beside.replace(path)
