"""`python -m bench decode`: Stable Audio's autoencoder from latents to audio, diffusers' own module beside ours on the
same weights, checked against a wider dtype and timed interleaved, with the time the arithmetic alone needs beside it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench import checks, cuda, machine, measure, meter, results, show, subprocesses
from bench.cli import option
from bench.names import CHUNKED, COMPILE, PRESTO, REFERENCE
from bench.results import Report, ratio_fields, timing_fields
from presto_models.autoencoders import Oobleck, OobleckConfig, oobleck_from_state_dict

CHECKED_LATENTS = 24  # longer than the decoder's context on both sides, short enough for float64
RATIOS = {
    "reference_over_presto": (REFERENCE, PRESTO),
    "reference_over_chunked": (REFERENCE, CHUNKED),
    "compile_over_presto": (COMPILE, PRESTO),
}


@dataclass(frozen=True)
class DecodeOptions:
    """Latents to audio by Oobleck: diffusers' module, torch.compile of it, presto whole and in chunks."""

    config: str = option("stable-audio", "sizes", choices=("stable-audio", "presto-32s", "tiny"))
    dtype: str = option("bf16", "dtype of the weights", choices=tuple(machine.DTYPES))
    audio: float = option(10.0, "seconds of audio")
    batch: int = option(1, "samples at a time")
    chunk: int = option(64, "latents of a chunk")
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    compile: bool = option(True, "torch.compile of diffusers' module as a second baseline")
    rounds: int = option(10, "rounds at most")
    seconds: float = option(60.0, "seconds of timing, to the end of the round; at least two rounds")
    memory: bool = option(False, "decode once more in a process of its own for each side and compare the peaks")
    json: str | None = option(None, "write the results to this file")


class Decoding:
    """diffusers' autoencoder with random weights, ours with the same, and latents."""

    def __init__(self, options: DecodeOptions, device: torch.device) -> None:
        self.config = OobleckConfig.named(options.config)
        dtype = machine.DTYPES[options.dtype]
        torch.manual_seed(0)
        plain = diffusers_module(self.config)
        self.presto = oobleck_from_state_dict(plain.state_dict()).to(device=device, dtype=dtype)
        self.reference = plain.to(device=device, dtype=dtype)
        self.latents = torch.randn(latent_shape(options)).to(device=device, dtype=dtype)
        self.implementations = implementations(options, self.reference, self.presto)


def latent_shape(options: DecodeOptions) -> tuple[int, int, int]:
    """[B, N, C], N rounded up."""
    config = OobleckConfig.named(options.config)
    return options.batch, max(1, math.ceil(options.audio * config.sample_rate / config.hop)), config.latent_channels


def implementations(options: DecodeOptions, reference: Any, presto: Any) -> dict[str, Callable[[Tensor], Tensor]]:
    """Latents [B, N, C] to audio, by name."""
    return {
        REFERENCE: functools.partial(decode_plain, reference),
        PRESTO: presto.decode,
        CHUNKED: lambda latents: presto.decode_chunked(latents, chunk=options.chunk),
    }


def diffusers_module(config: OobleckConfig) -> Any:
    """diffusers' autoencoder as it starts training, but with Snakes that differ from channel to channel."""
    from diffusers import AutoencoderOobleck

    module: Any = AutoencoderOobleck(
        encoder_hidden_size=config.encoder_channels,
        downsampling_ratios=list(config.strides),
        channel_multiples=list(config.multiples),
        decoder_channels=config.channels,
        decoder_input_channels=config.latent_channels,
        audio_channels=config.audio_channels,
        sampling_rate=config.sample_rate,
    )
    for name, parameter in module.named_parameters():
        if name.endswith(("alpha", "beta")):
            nn.init.normal_(parameter, std=0.3)
    return module.eval().requires_grad_(False)


def gflop(options: DecodeOptions) -> float:
    """Multiplications and additions of the convolutions, in units of 10^9."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        decode_plain(diffusers_module(OobleckConfig.named(options.config)), torch.empty(latent_shape(options)))
    return counter.get_total_flops() / 1e9


def decode_plain(module: Any, latents: Tensor) -> Tensor:
    """As diffusers' pipeline calls it."""
    return module.decode(latents.mT).sample.float()


def run(options: DecodeOptions) -> int:
    """Checks, times and prints. Exit status 1 where an implementation was refused or ours is slower than diffusers'."""
    device = machine.pick_device(options.device)
    report = results.start("decode", options, device, [options.dtype])
    peaks = memory(options) if options.memory else {}
    with show.stage("random weights"):
        decoding = Decoding(options, device)
    described = {name: getattr(options, name) for name in ("config", "dtype", "audio", "batch", "chunk")}
    work = gflop(options)
    bound = work / report.meta["ceilings"]["matmul_tflops"][options.dtype]
    report.summary |= {**described, "gflop": round(work, 1), "bound_ms": round(bound, 1)}
    ways = dict(decoding.implementations)
    with show.stage("check against a wider dtype"):
        for name, error in check(decoding, options).items():
            report.refuse(error, implementation=name)
            del ways[name]
    with torch.inference_mode():
        if options.compile:
            compile_reference(decoding, ways, report)
        timer = cuda.event_timer if device.type == "cuda" else measure.cpu_timer
        measures = {name: timer(functools.partial(way, decoding.latents)) for name, way in ways.items()}
        with show.rounds(f"{options.audio:g} s of audio x {len(measures)} implementations") as on_progress:
            samples = measure.interleave(
                measures,
                rounds=options.rounds,
                seconds=options.seconds,
                min_rounds=2,
                warmup=0,  # the check has run each, and a decode takes seconds
                on_progress=on_progress,
            )
    for name in samples.times:
        p50 = samples.percentile(name, 50)
        report.rows.append(
            {
                "implementation": name,
                **timing_fields(samples, name),
                "bound_share": None if p50 is None else round(bound / p50, 4),
                "peak_bytes": peaks.get(name),
                **ratio_fields("reference_over_this", measure.paired_ratio(samples, REFERENCE, name)),
            }
        )
    ratios = {name: measure.paired_ratio(samples, *pair) for name, pair in RATIOS.items()}
    for name, ratio in ratios.items():
        report.summary.update(ratio_fields(name, ratio))
    plain = samples.percentile(REFERENCE, 50)
    if plain is not None:
        report.summary["reference_over_bound"] = round(plain / bound, 4)
    report.save(options.json)
    show.console.print(table(report))
    show.refused(report.refused)
    ours = ratios["reference_over_presto"]
    slower = ours is not None and ours.high < 1
    if slower:
        show.console.print("presto is slower than diffusers' own module here", style="bold red")
    return 130 if samples.interrupted else 1 if report.refused or slower else 0


def check(decoding: Decoding, options: DecodeOptions) -> dict[str, Exception]:
    """What is wrong with ours on a short stretch, by name: diffusers in a wider dtype is the oracle."""
    latents = decoding.latents[:, :CHECKED_LATENTS]
    wide = torch.float64 if options.dtype == "fp32" else torch.float32
    torch.manual_seed(0)
    oracle = diffusers_module(decoding.config).to(device=latents.device, dtype=wide)
    ways, found = dict(decoding.implementations), {}
    with torch.inference_mode():
        expected = oracle.decode(latents.to(wide).mT).sample
        plain = ways.pop(REFERENCE)(latents)
        for name, way in ways.items():
            try:
                checks.check(name, [way(latents)], [expected], [plain], ["audio"], rowwise=False)
            except Exception as error:
                found[name] = error
    return found


def compile_reference(decoding: Decoding, ways: dict[str, Callable[[Tensor], Tensor]], report: Report) -> None:
    """Adds torch.compile of diffusers' decoder to `ways`, or the reason it is not there to the report."""
    torch._dynamo.reset()
    compiled = torch.compile(decoding.reference.decoder, dynamic=False, fullgraph=True)

    def way(latents: Tensor) -> Tensor:
        return compiled(latents.mT).float()

    try:
        with torch._dynamo.config.patch(suppress_errors=False), show.stage("torch.compile of diffusers' decoder"):
            way(decoding.latents)
        ways[COMPILE] = way
    except Exception as problem:
        report.refuse(problem, implementation=COMPILE)


def peak_bytes(side: str, fields: dict[str, Any]) -> int:
    """How much more memory than the weights take this process has held while it decoded once, with weights of zeros.

    `fields`: those of :class:`DecodeOptions`.
    """
    options = DecodeOptions(**fields)
    device, dtype = machine.pick_device(options.device), machine.DTYPES[options.dtype]
    config = OobleckConfig.named(options.config)
    with torch.device("meta"):
        module = diffusers_module(config) if side == REFERENCE else Oobleck(config)
    module = meter.zeros(module, device, dtype)
    latents = torch.zeros(latent_shape(options), device=device, dtype=dtype)
    measured = meter.Meter(device)
    before = measured.held()
    measured.reset()
    with torch.inference_mode():
        implementations(options, module, module)[side](latents)
    return measured.peak() - before


def memory(options: DecodeOptions) -> dict[str, int]:
    """Peak bytes of each side, each in a process of its own so that neither inherits the other's."""
    peaks = {}
    for side in (REFERENCE, PRESTO, CHUNKED):
        with show.stage(f"peak memory of {side}"):
            peaks[side] = subprocesses.call("bench.decode:peak_bytes", side, asdict(options))
    return peaks


def table(report: Report) -> Table:
    columns = ("implementation", "p50 ms", "p95 ms", "reference/it", "of the bound", "peak MB")
    cells = [
        (
            row["implementation"],
            show.number(row["ms_p50"]),
            show.number(row["ms_p95"]),
            show.ratio(row, "reference_over_this"),
            show.percent(row["bound_share"]),
            show.number(row["peak_bytes"] / 1e6) if row["peak_bytes"] is not None else None,
        )
        for row in report.rows
    ]
    s = report.summary
    title = (
        f"{s['audio']:g} s of audio, {s['config']}, {s['dtype']}, {s['gflop']:.0f} GFLOP: bound {s['bound_ms']:.0f} ms"
    )
    return show.table(title, columns, cells)
