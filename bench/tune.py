"""`python -m bench tune`: times every implementation of every op on this device and writes what `auto` goes by."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import presto_kernels
from bench import checks, cuda, machine, measure, op_implementations, op_timers, show
from bench.cli import option
from bench.op_cases import OPS, Case, Outputs
from bench.op_implementations import Implementation
from bench.op_timers import Timed
from bench.results import Report, write_json
from bench.trust import Trial
from presto_kernels import backends, tuned
from presto_kernels.ops.attention import operators


@dataclass(frozen=True)
class TuneOptions:
    """Times every implementation of every op on this device and writes the data that `auto` picks from."""

    ops: tuple[str, ...] = option(tuple(OPS), "which ops; what is known of the others stays", choices=tuple(OPS))
    dtype: tuple[str, ...] = option(("bf16", "fp32"), "dtypes", choices=tuple(machine.DTYPES))
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    rounds: int = option(20, "rounds a case at most")
    seconds: float = option(1.0, "seconds a case at most, once three rounds are in")
    folder: str = option(str(tuned.FOLDER), "where the device's file is written")


def run(options: TuneOptions) -> int:
    """Writes the file after every case, so that a stop keeps what was measured. Exit status 1 if any was wrong."""
    device = machine.pick_device(options.device)
    identity = tuned.device_identity(torch.device(device.type, device.index or 0))
    file = Path(options.folder) / (re.sub(r"[^a-z0-9]+", "-", identity["name"].lower()).strip("-") + ".json")
    content = json.loads(file.read_text()) if file.exists() else {"rankings": {}}
    content |= {"device": identity, "measured": measured(device)}
    report = Report({})
    cases = [
        Case(OPS[name], OPS[name].parse(shape), dtype, training, device)
        for name in options.ops
        for dtype in options.dtype
        for training in ((False, True) if OPS[name].backward else (False,))
        for shape in (*OPS[name].shapes, *OPS[name].small)
    ]
    show.console.print(f"{identity['name']} ({identity['family']}): {len(cases)} cases, to {file}")
    found: list[tuple[Case, dict[str, float]]] = []
    with contextlib.suppress(KeyboardInterrupt), show.rounds("cases") as on_progress:
        for number, case in enumerate(cases, 1):
            milliseconds = time_case(case, options, report)
            on_progress(number / len(cases))
            if not milliseconds:
                continue
            found.append((case, milliseconds))
            keep(content["rankings"], case, milliseconds)
            if case.op.name == "qk_norm_rope" and not case.backward and device.type == "cuda":
                keep_prologue(content["rankings"], case, options)
            write_json(file, content)
    show.console.print(table(found))
    show.refused(report.refused)
    return 1 if report.refused else 130 if len(found) < len(cases) else 0


def measured(device: torch.device) -> dict[str, Any]:
    """What a reader has to know to measure it again."""
    meta = machine.meta(device)
    return {key: meta[key] for key in ("device", "threads", "torch", "triton", "commit", "command", "date")}


def time_case(case: Case, options: TuneOptions, report: Report) -> dict[str, float]:
    """Median milliseconds of each implementation that can be trusted; a training case is forward and backward."""
    trial, made = Trial(case), dict[str, Timed]()
    for name in op_implementations.backends(case):
        implementation = Implementation(f"presto {name}", case.op.presto, name)
        try:
            trial.before(implementation)
            made[name] = _timed(case, name)
        except Exception as error:
            report.refuse(error, case=case.key, implementation=implementation.name)
    measures = {name: one.measure for name, one in made.items()}
    samples = measure.interleave(measures, rounds=options.rounds, seconds=options.seconds)
    if samples.interrupted:
        raise KeyboardInterrupt
    for name, one in made.items():
        try:
            trial.after(f"presto {name}", one)
        except Exception as error:
            report.refuse(error, case=case.key, implementation=f"presto {name}")
            del measures[name]
    return {name: round(float(samples.percentile(name, 50) or 0), 5) for name in measures}


def _timed(case: Case, backend: str) -> Timed:
    inputs = case.inputs(seed=0)
    checks.random_data(case.op.tensors, inputs)
    function = functools.partial(case.op.presto, *inputs, **case.constants())

    def call() -> Outputs:
        if not case.backward:
            return function()
        outputs = function()
        return torch.autograd.grad(outputs, inputs, gradients)

    with _forced(case, backend):
        gradients = op_timers.random_grads(function(), seed=0) if case.backward else ()
        timer = _timer_on(case, call)

    def measured(part: int) -> float:
        with _forced(case, backend):
            return timer(part)

    def once(index: int) -> Outputs:
        with _forced(case, backend):
            return timer.once(index) if isinstance(timer, cuda.Replay) else call()

    return Timed(measured, once, [(*inputs, *gradients)])


def _timer_on(case: Case, call: Callable[[], object]) -> measure.Measure:
    if case.device.type == "cpu":
        return measure.cpu_timer(call, repeats=measure.repeats_for(call, least_ms=2.0))
    # Generation replays graphs, where a launch costs next to nothing; training launches one by one.
    return cuda.event_timer(call, repeats=5) if case.backward else cuda.graph_timer([call])


@contextlib.contextmanager
def _forced(case: Case, backend: str) -> Iterator[None]:
    with op_implementations.forced(case, backend), torch.set_grad_enabled(case.backward):
        yield


def keep_prologue(rankings: dict[str, Any], case: Case, options: TuneOptions) -> None:
    """Files whether one kernel for QK-norm, rotary and attention beats the two ops, at the shape of a qk_norm_rope."""
    q, k, q_weight, k_weight = case.inputs(seed=0)
    v, tables = torch.randn_like(k), case.constants()

    def separate() -> torch.Tensor:
        normed = presto_kernels.qk_norm_rope(q, k, **tables, q_weight=q_weight, k_weight=k_weight)
        return presto_kernels.attention(*normed, v)

    def fused() -> torch.Tensor:
        weights = (tables["cos"], tables["sin"], q_weight, k_weight)
        return operators.qk_norm_rope_operator()(q, k, v, *weights, 1e-6, None, -1, -1, q.shape[-1] ** -0.5)

    with torch.no_grad():
        measures = {call.__name__: _timer_on(case, call) for call in (separate, fused)}
        samples = measure.interleave(measures, rounds=options.rounds, seconds=options.seconds)
        kind, size = backends.filed_under("attention", q, k, v)
    milliseconds = {name: round(float(samples.percentile(name, 50) or 0), 5) for name in measures}
    _file(rankings, "qk_norm_rope_attention", f"{case.dtype} {kind}", size, milliseconds)


def keep(rankings: dict[str, Any], case: Case, milliseconds: dict[str, float]) -> None:
    """Files one measurement; an older one of the same size goes."""
    name, arguments = op_implementations.public_call(case)
    with torch.set_grad_enabled(case.backward):
        kind, size = backends.filed_under(name, **arguments)
    _file(rankings, name, f"{case.dtype} {kind}".rstrip(), size, milliseconds)


def _file(rankings: dict[str, Any], name: str, kind: str, size: int, milliseconds: dict[str, float]) -> None:
    rows = rankings.setdefault(name, {}).setdefault(kind, [])
    rows[:] = sorted((*(row for row in rows if row["size"] != size), {"size": size, "ms": milliseconds}), key=_size)


def _size(row: dict[str, Any]) -> int:
    return row["size"]


def table(found: list[tuple[Case, dict[str, float]]]) -> Table:
    """One line a case: the implementations, fastest first, and how far the second is behind."""
    cells = []
    for case, milliseconds in found:
        order = sorted(milliseconds, key=milliseconds.__getitem__)
        gain = milliseconds[order[1]] / milliseconds[order[0]] if len(order) > 1 else None
        times = ", ".join(f"{name} {show.number(milliseconds[name])}" for name in order)
        cells.append((case.key.replace("backward", "training"), times, show.times(gain)))
    return show.table("fastest first, ms", ("case", "implementations", "second/first"), cells, left=2)
