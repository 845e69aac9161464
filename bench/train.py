"""`python -m bench train`: one training step of the DiT, forward and backward, by every implementation, interleaved in
one run, and the memory each needs.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from bench import checks, cuda, machine, measure, meter, results, show, subprocesses
from bench.cli import option
from bench.generation import TEXT_TOKENS
from bench.names import COMPILE, PRESTO, REFERENCE
from bench.results import Report, ratio_fields, timing_fields
from presto_models import EDM, Conditioning, DiT, DiTConfig, ReferenceDiT, edm_loss, randomize_weights

RATIOS = {"reference_over_presto": (REFERENCE, PRESTO), "compile_over_presto": (COMPILE, PRESTO)}


@dataclass(frozen=True)
class TrainOptions:
    """One training step, forward and backward of EDM's loss: plain PyTorch, torch.compile, presto; time and memory."""

    config: str = option("presto-32s", "model sizes", choices=("presto-32s", "tiny"))
    dtype: str = option("bf16", "dtype of the model", choices=tuple(machine.DTYPES))
    batch: int = option(1, "samples in a step")
    blocks: int | None = option(None, "fewer blocks than the config has; each of them costs the same")
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    compile: bool = option(True, "torch.compile of the reference as a second baseline")
    rounds: int = option(30, "rounds at most")
    seconds: float = option(120.0, "seconds of timing, to the end of the round; at least three rounds")
    memory: bool = option(True, "run two steps of each side in a process of its own and compare the peaks")
    json: str | None = option(None, "write the results to this file")


class Training:
    """Both models on the same parameters, a batch, and a training step of either."""

    def __init__(self, options: TrainOptions, device: torch.device) -> None:
        named, dtype = DiTConfig.named(options.config), machine.DTYPES[options.dtype]
        self.config = dataclasses.replace(named, num_blocks=options.blocks or named.num_blocks)
        with torch.device("meta"):
            self.presto, self.reference = DiT(self.config), ReferenceDiT(self.config)
        self.presto = self.presto.to(dtype).to_empty(device=device)
        randomize_weights(self.presto)
        self.reference.load_state_dict(self.presto.state_dict(keep_vars=True), assign=True)
        normal = functools.partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
        pooled = normal(options.batch, self.config.pooled_dim).to(dtype) if self.config.pooled_dim else None
        tokens = normal(options.batch, TEXT_TOKENS, self.config.text_dim).to(dtype)
        self.conditioning = Conditioning(tokens, pooled)
        size = (options.batch, self.config.nominal_latents, self.config.in_channels)
        self.latents, self.noise, self.sigma = 0.5 * normal(*size), normal(*size), normal(options.batch).exp()

    def step(self, model: nn.Module) -> None:
        """Loss and gradients, the old gradients dropped first as an optimiser's `zero_grad` drops them."""
        for parameter in self.presto.parameters():
            parameter.grad = None
        loss = edm_loss(EDM(model), self.latents, self.conditioning, sigma=self.sigma, noise=self.noise)
        loss.mean().backward()

    def gradients(self, model: nn.Module) -> dict[str, Tensor]:
        self.step(model)
        return {name: p.grad for name, p in self.presto.named_parameters() if p.grad is not None}


def run(options: TrainOptions) -> int:
    """Checks, times and prints. Exit status 1 where an implementation was refused."""
    device = machine.pick_device(options.device)
    report = results.start("train", options, device, [options.dtype])
    report.summary |= {"config": options.config, "batch": options.batch, "dtype": options.dtype}
    peaks = memory(options) if options.memory else {}
    with show.stage("random weights"):
        training = Training(options, device)
    report.summary["blocks"] = training.config.num_blocks
    models: dict[str, nn.Module] = {REFERENCE: training.reference, PRESTO: training.presto}
    with show.stage("check against a wider dtype"):
        error = check(training, options)
    if error is not None:
        report.refuse(error, implementation=PRESTO)
        del models[PRESTO]
    if options.compile:
        torch._dynamo.reset()
        compiled = torch.compile(training.reference, dynamic=False, fullgraph=True)
        try:
            with torch._dynamo.config.patch(suppress_errors=False), show.stage("torch.compile of the reference"):
                training.step(compiled)
            models[COMPILE] = compiled
        except Exception as problem:
            report.refuse(problem, implementation=COMPILE)
    timer = cuda.event_timer if device.type == "cuda" else measure.cpu_timer
    measures = {name: timer(functools.partial(training.step, model)) for name, model in models.items()}
    with show.rounds(f"training step x {len(measures)} implementations") as on_progress:
        samples = measure.interleave(measures, rounds=options.rounds, seconds=options.seconds, on_progress=on_progress)
    for name in samples.times:
        ratio = measure.paired_ratio(samples, REFERENCE, name)
        report.rows.append(
            {
                "implementation": name,
                **timing_fields(samples, name),
                "peak_bytes": peaks.get(name),
                **ratio_fields("reference_over_this", ratio),
            }
        )
    for name, pair in RATIOS.items():
        report.summary.update(ratio_fields(name, measure.paired_ratio(samples, *pair)))
    if len(peaks) == 2:
        report.summary["peak_presto_over_reference"] = round(peaks[PRESTO] / peaks[REFERENCE], 4)
    report.save(options.json)
    show.console.print(table(report))
    show.refused(report.refused)
    return 130 if samples.interrupted else 1 if report.refused else 0


def check(training: Training, options: TrainOptions) -> Exception | None:
    """Every parameter's gradient against a wider reference, where the reference in the same dtype is the measure."""
    wide = torch.float64 if options.dtype == "fp32" else torch.float32
    with torch.device("meta"):
        oracle = ReferenceDiT(training.config)
    weights = {name: weight.detach().to(wide) for name, weight in training.presto.state_dict().items()}
    oracle.load_state_dict(weights, assign=True)
    conditioning = training.conditioning.to(dtype=wide)
    loss = edm_loss(EDM(oracle), training.latents, conditioning, sigma=training.sigma, noise=training.noise)
    loss.mean().backward()
    expected = {name: p.grad for name, p in oracle.named_parameters() if p.grad is not None}
    plain, ours = training.gradients(training.reference), training.gradients(training.presto)
    try:
        checks.check(
            PRESTO,
            [ours[name] for name in expected],
            list(expected.values()),
            [plain[name] for name in expected],
            [f"d {name}" for name in expected],
            rowwise=False,
        )
    except Exception as error:
        return error
    return None


def peak_bytes(side: str, fields: dict[str, Any]) -> int:
    """The most memory this process has held in two training steps: of the device, or of the process on a CPU.

    `fields`: those of :class:`TrainOptions`.
    """
    options = TrainOptions(**fields)
    device = machine.pick_device(options.device)
    training = Training(options, device)
    measured = meter.Meter(device)
    measured.reset()
    for _ in range(2):
        training.step(training.presto if side == PRESTO else training.reference)
    return measured.peak()


def memory(options: TrainOptions) -> dict[str, int]:
    """Peak bytes of each side, each in a process of its own so that neither inherits the other's."""
    peaks = {}
    for side in (REFERENCE, PRESTO):
        with show.stage(f"peak memory of {side}"):
            peaks[side] = subprocesses.call("bench.train:peak_bytes", side, dataclasses.asdict(options))
    return peaks


def table(report: Report) -> Table:
    columns = ("implementation", "p50 ms", "p95 ms", "reference/it", "peak MB")
    cells = [
        (
            row["implementation"],
            show.number(row["ms_p50"]),
            show.number(row["ms_p95"]),
            show.ratio(row, "reference_over_this"),
            show.number(row["peak_bytes"] / 1e6) if row["peak_bytes"] else None,
        )
        for row in report.rows
    ]
    summary = report.summary
    title = f"training step, {summary['config']}, {summary['blocks']} blocks, {summary['dtype']}"
    return show.table(f"{title}, batch {summary['batch']}", columns, cells)
