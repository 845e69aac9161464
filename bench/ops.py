"""`python -m bench ops`: every fused op over real shapes, beside eager PyTorch, torch.compile and a plain copy."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

import presto_kernels
from bench import checks, cuda, machine, measure, op_timers, results, show
from bench.cli import option
from bench.op_cases import OPS, Case, Outputs
from bench.results import Report, Row, ratio_fields, timing_fields

COPY = "copy"


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
    rounds: int = option(50, "rounds a case at most")
    seconds: float = option(4.0, "seconds a case at most, once five rounds are in")
    aot: bool = option(False, "print instead what the compilers make for sm_80, sm_90 and sm_100; needs no GPU")
    json: str | None = option(None, "write the results to this file, case by case")


@dataclass(frozen=True)
class Implementation:
    """A way to compute an op; `backend` is what `use_backend` gets while it runs (presto only)."""

    name: str
    function: Callable[..., Outputs]
    backend: str | None = None


def run(options: OpsOptions) -> int:
    """Measures every case, prints a table each, writes the JSON as it goes. Exit status 1 if anything was refused."""
    if options.aot:
        from bench import aot  # loads the compilers' wrappers, which nothing else here needs

        return aot.run(options.json)
    device = machine.pick_device(options.device)
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


def implementations(case: Case, *, compiled: bool) -> list[Implementation]:
    """Eager, torch.compile of it (fresh and static: no dynamic-shape variant is timed), and presto's backends."""
    found = [Implementation("eager", case.op.eager)]
    if compiled:
        torch._dynamo.reset()
        found.append(Implementation("compile", torch.compile(case.op.eager, dynamic=False, fullgraph=True)))
    beside = dict(case.op.baselines) | (dict(case.op.cuda_baselines) if case.device.type == "cuda" else {})
    found += [Implementation(name, function) for name, function in beside.items()]
    return [*found, *(Implementation(f"presto {name}", case.op.presto, name) for name in backends(case))]


def backends(case: Case) -> list[str]:
    """Presto's implementations that take this case, the reference last."""
    name, arguments = public_call(case)
    found = []
    for backend in presto_kernels.available_backends()[name]:
        try:
            with forced(case, backend):
                presto_kernels.explain(name, **arguments)
        except ValueError:
            continue
        found.append(backend)
    return found


def public_call(case: Case) -> tuple[str, dict[str, Any]]:
    """The public op and its arguments, as `explain` takes them."""
    tensors = dict(zip(case.op.tensors, case.inputs(seed=0), strict=True))
    return case.op.public or case.op.name, tensors | case.constants()


def forced(case: Case, backend: str | None) -> contextlib.AbstractContextManager[None]:
    """`use_backend` for this op: attention has implementations that no other op has."""
    if (case.op.public or case.op.name) == "attention":
        return presto_kernels.use_backend(attention=backend)
    return presto_kernels.use_backend(backend)


def measure_case(case: Case, options: OpsOptions, report: Report, label: str) -> tuple[list[Row], bool]:
    """Checks, then times, every implementation of one case; returns its rows and whether Ctrl-C ended it."""
    good = []
    with show.stage(f"{label}: check"):
        for implementation in implementations(case, compiled=options.compile):
            try:
                check_implementation(case, implementation)
                good.append(implementation)
            except Exception as error:
                report.refuse(error, case=case.key, implementation=implementation.name)
    sets = [case.inputs(seed) for seed in range(cuda.input_sets(case.count.bytes, case.device))]
    rows: list[Row] = []
    for mode in ("graph", "call") if case.device.type == "cuda" else ("call",):
        measures: dict[str, measure.Measure] = {}
        for implementation in [*good, copy_of_same_bytes(case)]:
            try:
                measures[implementation.name] = _timer(case, implementation, sets, mode)
            except Exception as error:
                report.refuse(error, case=case.key, implementation=f"{implementation.name}, {mode}")
        with show.rounds(label) as on_progress:
            samples = measure.interleave(
                measures, rounds=options.rounds, seconds=options.seconds, min_rounds=5, on_progress=on_progress
            )
        rows += _rows(case, samples, mode, report)
        if samples.interrupted:
            return rows, True
    return rows, False


def check_implementation(case: Case, implementation: Implementation) -> float:
    """Raises `checks.WrongResult` unless outputs (forward) or gradients (backward) agree with float64."""
    if implementation.name in case.op.unchecked:
        return 0.0
    inputs, formula = case.inputs(seed=1), case.op.oracle or case.op.eager
    plain = _results(case, formula, inputs)
    oracle = _results(case, formula, tuple(t.detach().double().requires_grad_(case.backward) for t in inputs))
    with forced(case, implementation.backend):
        results = _results(case, implementation.function, inputs)
    names = [f"d {name}" for name in case.op.tensors] if case.backward else case.op.results
    return checks.check(implementation.name, results, oracle, plain, names, rowwise=True)


def _results(case: Case, function: Callable[..., Outputs], inputs: Outputs) -> Outputs:
    if not case.backward:
        with torch.no_grad():
            return function(*inputs, **case.constants())
    outputs = function(*inputs, **case.constants())
    # The float64 oracle gets the very gradients that the others get: random ones, rounded to the case's dtype.
    grads = op_timers.random_grads(outputs, seed=0, dtype=machine.DTYPES[case.dtype])
    return torch.autograd.grad(outputs, inputs, grads)


def copy_of_same_bytes(case: Case) -> Implementation:
    """Reads half of the case's bytes and writes the other half, with PyTorch's plainest elementwise kernel (neg)."""
    sources: dict[int, Tensor] = {}

    def copy(*inputs: Tensor, **constants: object) -> Outputs:
        key = inputs[0].data_ptr()
        if key not in sources:
            sources[key] = torch.randn(case.count.bytes // 8, device=case.device)
        return (sources[key].neg(),)

    return Implementation(COPY, copy)


def _timer(case: Case, implementation: Implementation, sets: list[Outputs], mode: str) -> measure.Measure:
    """A measure of one implementation, with its backend forced only around it."""
    backward = case.backward and implementation.name != COPY
    function = functools.partial(implementation.function, **case.constants())
    with forced(case, implementation.backend), torch.set_grad_enabled(backward):
        make = op_timers.backward if backward else op_timers.forward
        timer = make(function, sets, mode, case.device)

    def measured(part: int) -> float:
        with forced(case, implementation.backend), torch.set_grad_enabled(backward):
            return timer(part)

    return measured


def _auto(case: Case) -> str:
    """Name of the implementation that presto's dispatch takes for this case."""
    name, arguments = public_call(case)
    return f"presto {presto_kernels.explain(name, **arguments).backend}"


def _rows(case: Case, samples: measure.Samples, mode: str, report: Report) -> list[Row]:
    """A row an implementation; the figures of the one that `auto` takes also go to the summary."""
    if not samples.rounds:
        return []
    auto, count, rows = _auto(case), case.count, []
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
            "auto": name == auto,
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
        if name == auto:
            report.summary[f"{case.key} {mode}"] = {
                **ratio_fields("eager_over_presto", eager),
                **ratio_fields("compile_over_presto", compiled),
                **ratio_fields("presto_over_copy", copy),
            }
    return rows


def case_table(case: Case, rows: list[Row]) -> Table:
    """One case; * marks the implementation that presto's dispatch takes by itself."""
    columns = ("implementation", "mode", "p50 ms", "p95 ms", "eager/it", "compile/it", "it/copy", "GB/s", "of floor")
    cells = [
        (
            row["implementation"] + ("*" if row["auto"] else ""),
            row["mode"],
            show.number(row["ms_p50"]),
            show.number(row["ms_p95"]),
            show.times(row.get("eager_over_this")),
            show.times(row.get("compile_over_this")),
            show.times(row.get("this_over_copy")),
            show.number(row["gbs"]),
            show.percent(row["share_of_floor"]),
        )
        for row in rows
    ]
    return show.table(f"{case.key} · {case.count.bytes / 1e6:.1f} MB", columns, cells, left=2)
