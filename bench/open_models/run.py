"""`python -m bench open`: one call of an open model as its own library runs it, compiled, and accelerated.

Every side has the same weights and inputs and runs in turn.  Accelerated stands twice: as one call by itself, and with
what a prompt decides kept from call to call (`prompt_cache`), which is what the steps of a sampler cost.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import presto_kernels
from bench import checks, cuda, machine, measure, results, schema, show, subprocesses
from bench.cli import BadOption, option
from bench.names import COMPILE, GRAPH, PRESTO, REFERENCE
from bench.open_models.cases import CASES, Case
from bench.open_models.peers import NotThere
from bench.results import Report, ratio_fields, timing_fields

KEPT = f"{PRESTO}_kept"
CHECKED_SECONDS = 3.0  # of audio, short enough for the oracle
NAMES = tuple(case.name for case in CASES)

Call = Callable[[], Any]


@dataclass(frozen=True)
class OpenOptions:
    """A call of the models people have: untouched, compiled by torch, accelerated, and with the prompt's part kept."""

    models: tuple[str, ...] = option(NAMES, "which", choices=NAMES)
    dtype: str = option("bf16", "dtype of weights and inputs", choices=tuple(machine.DTYPES))
    audio: float | None = option(None, "seconds of audio; without it 30, and 10 for Oobleck")
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    compile: bool = option(True, "torch.compile of the untouched model beside it; it takes minutes to compile")
    rounds: int = option(15, "rounds at most, of each model")
    seconds: float = option(120.0, "seconds of timing for each model; at least three rounds")
    json: str | None = option(None, "write the results to this file")


def run(options: OpenOptions) -> int:
    """Checks, times and prints. Exit status 1 where a side was refused or a model got slower by being accelerated."""
    if options.audio is not None and not options.audio > 0:
        raise BadOption(f"--audio: {options.audio:g}; must be above 0")
    if options.rounds < 1:
        raise BadOption(f"--rounds: {options.rounds}; must be at least 1")
    device = machine.pick_device(options.device)
    report = results.start("open", options, device, [options.dtype])
    interrupted = False
    for case in CASES:
        if case.name in options.models and not interrupted:
            if len(options.models) > 1:
                interrupted = in_a_process(case, options, report)
            else:
                try:
                    interrupted = measure_case(case, options, device, report)
                except NotThere as missing:
                    report.refuse(missing, subject=case.name)
            report.save(options.json)
    show.console.print(table(report))
    show.refused(report.refused)
    slower = [name for name, found in report.summary.items() if found["reference_over_presto_kept_interval"][1] < 1]
    if slower:
        show.console.print(f"slower than untouched: {', '.join(slower)}", style="bold red")
    return 130 if interrupted else 1 if report.refused or slower else 0


def in_a_process(case: Case, options: OpenOptions, report: Report) -> bool:
    """:func:`measure_case` in a new process: what an earlier model left free in this one's heap would spare eager
    PyTorch the page faults of its large tensors, which a user's process has."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "one.json"
        command = [sys.executable, "-m", "bench", "open", "--models", case.name, "--dtype", options.dtype]
        command += ["--rounds", str(options.rounds), "--seconds", str(options.seconds), "--json", str(file)]
        command += [] if options.audio is None else ["--audio", str(options.audio)]
        command += [] if options.device is None else ["--device", options.device]
        command += [] if options.compile else ["--no-compile"]
        status = status_of(command)
        if file.exists():
            found = schema.read(file)
            rate, its_rate = (each.meta["ceilings"]["matmul_tflops"][options.dtype] for each in (report, found))
            for figures in found.summary.values():
                if "bound" in figures:  # a ceiling met at a slow moment is none
                    figures["bound"] = round(figures["bound"] * max(1.0, rate / its_rate), 4)
            report.rows += found.rows
            report.summary |= found.summary
            report.refused += found.refused
        elif status != 130:
            report.refuse(RuntimeError(f"its process ended with status {status}"), subject=case.name)
    return status == 130


def status_of(command: list[str]) -> int:
    """The exit status of a command that writes to this terminal."""
    path = os.pathsep.join(filter(None, (str(subprocesses.ROOT), os.environ.get("PYTHONPATH"))))
    try:
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode
    except KeyboardInterrupt:  # which the child has had too, and has kept what it had
        return 130


def measure_case(case: Case, options: OpenOptions, device: torch.device, report: Report) -> bool:
    """Adds a model's rows and summary; whether Ctrl-C ended it."""
    dtype, seconds = machine.DTYPES[options.dtype], options.audio or case.seconds
    with show.stage(f"{case.title}: random weights"):
        plain, fast = case.build(dtype, device), case.build(dtype, device)
    given = case.arguments(seconds, dtype, device)
    with torch.inference_mode(), contextlib.ExitStack() as keeping:
        work = flops(plain, given)
        call = functools.partial(plain, **given)
        began = time.perf_counter()
        presto_kernels.accelerate(fast)
        wait = {PRESTO: time.perf_counter() - began}
        with show.stage(f"{case.title}: check against a wider dtype"):
            wrong = check(case, plain, fast, options, device)
        if wrong is not None:
            report.refuse(wrong, subject=case.name, implementation=PRESTO)
            return False
        ways: dict[str, Call] = {REFERENCE: call, PRESTO: functools.partial(fast, **given)}
        if device.type == "cuda":
            for name, module in ((REFERENCE, plain), (PRESTO, fast)):
                ways[name + GRAPH] = functools.partial(presto_kernels.capture(module), **given)
        if options.compile:
            torch._dynamo.reset()
            ways[COMPILE] = functools.partial(torch.compile(plain, dynamic=False), **given)
        if case.prompted:
            twin = sharing_weights(fast)
            keeping.enter_context(presto_kernels.prompt_cache(twin))
            ways[KEPT] = functools.partial(twin, **given)
        for name in list(ways):
            try:
                with (
                    torch._dynamo.config.patch(suppress_errors=False),
                    show.stage(f"{case.title}: {name}, first calls"),
                ):
                    first, second = once(ways[name], device), once(ways[name], device)
                    wait[name] = wait.get(name, 0) + max(0.0, first - second)
            except Exception as problem:
                report.refuse(problem, subject=case.name, implementation=name)
                del ways[name]
        timer = cuda.event_timer if device.type == "cuda" else measure.cpu_timer
        with show.rounds(f"{case.title}, {seconds:g} s of audio x {len(ways)} implementations") as on_progress:
            samples = measure.interleave(
                {name: timer(way) for name, way in ways.items()},
                rounds=options.rounds,
                seconds=options.seconds,
                warmup=0,  # each has run twice
                on_progress=on_progress,
            )
    described = {"subject": case.name, "series": case.title, "dtype": options.dtype, "value": seconds}
    for name in samples.times:
        row = described | {
            "implementation": name,
            **timing_fields(samples, name),
            "wait_ms": round(wait[name] * 1e3, 1),
        }
        report.rows.append(row | ratio_fields("reference_over_this", measure.paired_ratio(samples, REFERENCE, name)))
    report.summary[case.name] = summary(case, samples, work, report)
    return samples.interrupted


def sharing_weights(module: nn.Module) -> nn.Module:
    """A copy with the same weights, which keeps what a prompt decides where ``module`` computes it at every call."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def once(way: Call, device: torch.device) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def flops(module: nn.Module, given: dict[str, Any]) -> float:
    """Multiplications and additions of the products, convolutions and attention of a call."""
    with FlopCounterMode(display=False) as counter:
        module(**given)
    return float(counter.get_total_flops())


def check(
    case: Case, plain: nn.Module, fast: nn.Module, options: OpenOptions, device: torch.device
) -> Exception | None:
    """What is wrong with the accelerated model on a short call: the untouched one in a wider dtype is the oracle."""
    dtype = machine.DTYPES[options.dtype]
    wide = torch.float64 if options.dtype == "fp32" else torch.float32
    given = case.arguments(CHECKED_SECONDS, dtype, device)
    widened = {name: _widened(value, wide) for name, value in given.items()}
    oracle = tensor(case.build(dtype, device).to(wide)(**widened))
    ours = [tensor(fast(**given))]
    if case.prompted:
        with presto_kernels.prompt_cache(fast):
            ours += [tensor(fast(**given)), tensor(fast(**given))]
    usual = tensor(plain(**given))
    try:
        for out in ours:
            checks.check(PRESTO, [out], [oracle], [usual], ["output"], rowwise=False)
    except Exception as error:
        return error
    return None


def _widened(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def tensor(output: Any) -> Tensor:
    """The tensor in what a model returns."""
    return output if isinstance(output, Tensor) else output[0]


def summary(case: Case, samples: measure.Samples, work: float, report: Report) -> results.Row:
    """The ratios people quote, and how near the matrix rate of this machine a call comes."""
    best = KEPT if case.prompted else PRESTO
    rate = report.meta["ceilings"]["matmul_tflops"][samples_dtype(report)]
    found: results.Row = {"gflop": round(work / 1e9, 1), "target": case.target}
    pairs = {
        "reference_over_presto": (REFERENCE, PRESTO),
        "reference_over_presto_kept": (REFERENCE, best),
        "reference_over_compile": (REFERENCE, COMPILE),
        "compile_over_presto_kept": (COMPILE, best),
    }
    for name, pair in pairs.items():
        found |= ratio_fields(name, measure.paired_ratio(samples, *pair))
    eager = samples.percentile(REFERENCE, 50)
    if eager is not None:
        found["bound"] = round(eager / (work / rate / 1e9), 4)  # eager over the arithmetic alone
    return found


def samples_dtype(report: Report) -> str:
    return str(report.meta["settings"]["dtype"])


def table(report: Report) -> Table:
    columns = ("model", "implementation", "p50 ms", "reference/it", "95 %", "wait s")
    cells = [
        (
            row["subject"],
            row["implementation"],
            show.number(row["ms_p50"]),
            show.ratio(row, "reference_over_this"),
            " to ".join(f"{end:.2f}" for end in row.get("reference_over_this_interval", ())) or None,
            f"{row['wait_ms'] / 1e3:.1f}",
        )
        for row in report.rows
    ]
    settings = report.meta["settings"]
    return show.table(f"one call, {settings['dtype']}, batch 1", columns, cells, left=2)
