"""`python -m bench ops`: every fused op over real shapes, beside eager PyTorch, torch.compile and a plain copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from bench import checks, cuda, machine, measure, results, show
from bench.cli import BadOption, option
from bench.op_cases import OPS, Case, Outputs
from bench.op_implementations import COPY, Implementation, auto, copy_of_same_bytes, implementations, timed
from bench.op_timers import CALL, CALL_COLD, GRAPH, GRAPH_WARM, Timed
from bench.results import Report, Row, ratio_fields, timing_fields
from bench.trust import Trial, Verdict


@dataclass(frozen=True)
class OpsOptions:
    """Every fused op over real shapes, beside eager PyTorch, torch.compile and a plain copy of the same bytes."""

    shapes: tuple[str, ...] = option((), "such as 2x1379x1024 (BxNxD for the AdaLN family); without it each op's own")
    ops: tuple[str, ...] = option(
        tuple(name for name, op in OPS.items() if op.default), "which ops", choices=tuple(OPS)
    )
    first: bool = option(False, "only the first shape of each op")
    dtype: tuple[str, ...] = option(("bf16",), "dtypes of activations and modulations", choices=tuple(machine.DTYPES))
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    backward: bool = option(False, "time the backward as well as the forward")
    compile: bool = option(True, "torch.compile of the eager op as a second baseline")
    cold: bool = option(False, "on a CPU also with inputs that are in no cache; a GPU always shows both")
    rounds: int = option(50, "rounds a case at most")
    seconds: float = option(4.0, "seconds a case at most, once five rounds are in")
    aot: bool = option(False, "print instead what the compilers make for sm_80, sm_90 and sm_100; needs no GPU")
    json: str | None = option(None, "write the results to this file, case by case")


def run(options: OpsOptions) -> int:
    """Measures every case, prints a table each, writes the JSON as it goes. Exit status 1 if anything was refused."""
    if options.aot:
        from bench import aot  # loads the compilers' wrappers, which nothing else here needs

        return aot.run(options.json)
    device = machine.pick_device(options.device)
    if options.cold and device.type == "cpu" and machine.last_level_cache() is None:
        raise BadOption("--cold: this system does not tell how large its caches are")
    cases = [
        Case(OPS[op], OPS[op].parse(shape), dtype, backward, device)
        for op in options.ops
        for dtype in options.dtype
        for backward in ((False, True) if options.backward and OPS[op].backward else (False,))
        for shape in options.shapes or OPS[op].shapes[: 1 if options.first else None]
    ]
    report = results.start("ops", options, device, options.dtype)
    for number, case in enumerate(cases, 1):
        try:
            rows, interrupted = measure_case(case, options, report, f"{number}/{len(cases)} {case.key}")
        except KeyboardInterrupt:
            rows, interrupted = [], True
        report.rows += rows
        report.save(options.json)
        if rows:
            show.console.print(case_table(case, rows))
        if interrupted:
            show.console.print(f"stopped in case {number} of {len(cases)}; what was measured is kept")
            return 130
    show.refused(report.refused)
    return 1 if report.refused else 0


def measure_case(
    case: Case, options: OpsOptions, report: Report, label: str, *, clock: Callable[[], float] = time.perf_counter
) -> tuple[list[Row], bool]:
    """Checks, times and checks again every implementation of one case; its rows, and whether Ctrl-C ended it."""
    trial, good = Trial(case, clock=clock), dict[Implementation, Verdict]()
    with show.stage(f"{label}: check"):
        for implementation in implementations(case, compiled=options.compile):
            try:
                good[implementation] = trial.before(implementation)
            except Exception as error:
                report.refuse(error, case=case.key, implementation=implementation.name)
    runs: list[tuple[str, dict[str, Timed], measure.Samples]] = []
    sets = input_sets(case, options)
    for mode in modes(case, options):
        what: dict[str, Timed] = {}
        for implementation in [*good, copy_of_same_bytes(case)]:
            try:
                what[implementation.name] = timed(case, implementation, sets, mode, clock=clock)
            except Exception as error:
                report.refuse(error, case=case.key, implementation=f"{implementation.name}, {mode}")
        with show.rounds(label) as on_progress:
            samples = measure.interleave(
                {name: one.measure for name, one in what.items()},
                rounds=options.rounds,
                seconds=options.seconds,
                min_rounds=5,
                on_progress=on_progress,
                clock=clock,
            )
        runs.append((mode, what, samples))
        if samples.interrupted:
            break
    for name in _found_out(trial, runs, report):
        for _, _, samples in runs:
            samples.times.pop(name, None)
    repeats = {implementation.name: verdict.deterministic for implementation, verdict in good.items()}
    rows = [row for mode, _, samples in runs for row in _rows(case, samples, mode, repeats, report)]
    return rows, any(samples.interrupted for _, _, samples in runs)


def modes(case: Case, options: OpsOptions) -> tuple[str, ...]:
    """How a case is timed on its device."""
    if case.device.type == "cuda":
        return GRAPH, GRAPH_WARM, CALL
    return (CALL, CALL_COLD) if options.cold else (CALL,)


def input_sets(case: Case, options: OpsOptions) -> list[Outputs]:
    """As many random inputs as it takes for none to be in a cache when its turn comes, where a mode wants that."""
    count = cuda.input_sets(case.count.bytes, case.device)
    if CALL_COLD in modes(case, options):
        count = cuda.sets_beyond(machine.last_level_cache() or 0, case.count.bytes)
    sets = [case.inputs(seed) for seed in range(count)]
    checks.random_data(case.op.tensors, sets[0])
    return sets


def check_implementation(case: Case, implementation: Implementation) -> float:
    """Raises a `checks.Refused` unless `bench ops` would time it; returns its largest error over what is allowed."""
    return Trial(case).before(implementation).error


def _found_out(
    trial: Trial, runs: list[tuple[str, dict[str, Timed], measure.Samples]], report: Report
) -> dict[str, Exception]:
    """Those that were timed and are not right on new numbers in the tensors that they were timed on."""
    found: dict[str, Exception] = {}
    for _, what, _ in runs:
        for name in [name for name in what if name != COPY and name not in found]:
            try:
                trial.after(name, what[name])
            except Exception as error:
                found[name] = error
                report.refuse(error, case=trial.case.key, implementation=name)
    return found


def _rows(case: Case, samples: measure.Samples, mode: str, repeats: dict[str, bool], report: Report) -> list[Row]:
    """A row an implementation; the figures of the one that `auto` takes also go to the summary.

    repeats: whether an implementation's bits are the same on every call, where that was asked.
    """
    if not samples.rounds:
        return []
    chosen, count, rows = auto(case), case.count, []
    ceilings = report.meta["ceilings"]
    copy_gbs, floor = ceilings["copy_gbs"], count.floor_ms(ceilings["copy_gbs"], ceilings["matmul_tflops"][case.dtype])
    for name in samples.times:
        p50 = float(np.median(samples.ms(name)))
        eager, compiled, copy = (
            measure.paired_ratio(samples, *pair) for pair in (("eager", name), ("compile", name), (name, COPY))
        )
        row = {
            "op": case.op.name,
            "shape": list(case.shape),
            "dtype": case.dtype,
            "direction": "backward" if case.backward else "forward",
            "mode": mode,
            "implementation": name,
            "auto": name == chosen,
            "deterministic": repeats.get(name),
            **timing_fields(samples, name),
            "bytes": count.bytes,
            "bytes_formula": count.bytes_formula,
            "flops": count.flops,
            "flops_formula": count.flops_formula,
            "gbs": count.gbs(p50),
            "tflops": count.tflops(p50),
            "share_of_copy_ceiling": count.gbs(p50) / copy_gbs,
            "floor_ms": floor,
            "share_of_floor": floor / p50,
            **ratio_fields("eager_over_this", eager),
            **ratio_fields("compile_over_this", compiled),
            **ratio_fields("this_over_copy", copy),
        }
        rows.append(row)
        if name == chosen:
            report.summary[f"{case.key} {mode}"] = {
                **ratio_fields("eager_over_presto", eager),
                **ratio_fields("compile_over_presto", compiled),
                **ratio_fields("presto_over_copy", copy),
            }
    return rows


def case_table(case: Case, rows: list[Row]) -> Table:
    """One case; * marks the implementation that presto's dispatch takes by itself."""
    ratios = ("eager\n/it", "compile\n/it", "it/\ncopy")
    columns = ("implementation", "mode", "p50 ms", "p95 ms", *ratios, "GB/s", "of\nfloor")
    cells = [
        (
            row["implementation"] + ("*" if row["auto"] else ""),
            row["mode"],
            show.number(row["ms_p50"]),
            show.number(row["ms_p95"]),
            show.ratio(row, "eager_over_this"),
            show.ratio(row, "compile_over_this"),
            show.ratio(row, "this_over_copy"),
            show.number(row["gbs"]),
            show.percent(row["share_of_floor"]),
        )
        for row in rows
    ]
    return show.table(f"{case.key} · {case.count.bytes / 1e6:.1f} MB", columns, cells, left=2, wrap=2)
