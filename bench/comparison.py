"""One generation's steps and its decoder by every implementation: rows, tables and the measurements apart from
`bench.latency.time_steps`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from rich.table import Table

from bench import counting_dit, cuda, decode, measure, show
from bench.generation import Generation, Implementation
from bench.names import COMPILE, GRAPH, PRESTO, REFERENCE, SCHEDULED
from bench.results import Report, Row, ratio_fields, timing_fields
from bench.stages import DECODE
from bench.telemetry import Watch

RATIOS = {
    "reference_over_presto": (REFERENCE, PRESTO),
    "compile_over_presto": (COMPILE, PRESTO),
    "scheduled_over_full": (SCHEDULED, PRESTO),
    "reference_over_scheduled": (REFERENCE, SCHEDULED),
}


def time_one_graph(
    generation: Generation,
    found: dict[str, Implementation],
    report: Report,
    *,
    rounds: int,
    seconds: float,
    json: str | None,
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
        samples = measure.interleave(measures, rounds=rounds, seconds=seconds, warmup=3, on_progress=on_progress)
    if samples.rounds:
        report.summary["one_graph_ms"] = {name: rounded(samples.percentile(name, 50)) for name in samples.times}
        for ratio, (over, under) in RATIOS.items():
            report.summary.update(ratio_fields(f"{ratio}_one_graph", measure.paired_ratio(samples, over, under)))
        report.save(json)
    return samples.interrupted


def time_decoders(
    generation: Generation, report: Report, watched: Watch, *, rounds: int, seconds: float, json: str | None
) -> bool:
    """diffusers' decoder beside ours on the same weights; returns whether Ctrl-C ended it."""
    setup = generation.setup
    device = setup.device
    sizes = decode.OobleckConfig.named(setup.config)
    audio = generation.config.nominal_latents * sizes.hop / sizes.sample_rate
    asked = decode.DecodeOptions(config=setup.config, dtype=setup.dtype, audio=audio)
    try:
        with show.stage("the decoder, diffusers' and ours"):
            decoding = decode.Decoding(asked, device)
            wrong = decode.check(decoding, asked)
    except ImportError as error:  # not refused: a GPU runner is right to time the rest
        show.console.print(f"diffusers' decoder: not timed, {error}", markup=False)
        return False
    if PRESTO in wrong:
        report.refuse(wrong[PRESTO], stage=DECODE, implementation=PRESTO)
    timer = cuda.event_timer if device.type == "cuda" else measure.cpu_timer
    ways = {name: decoding.implementations[name] for name in (REFERENCE, PRESTO) if name not in wrong}
    with torch.inference_mode(), show.rounds("decode") as on_progress, watched:
        samples = measure.interleave(
            {name: timer(partial(way, decoding.latents)) for name, way in ways.items()},
            rounds=rounds,
            seconds=seconds,
            min_rounds=2,
            warmup=1 if device.type == "cpu" else 3,
            on_progress=on_progress,
        )
    for name in samples.times if samples.rounds else ():
        row = {"stage": DECODE, "batch": 1, "implementation": name}
        report.rows.append(row | {"latents": decoding.latents.shape[1]} | timing_fields(samples, name))
    ratio = measure.paired_ratio(samples, REFERENCE, PRESTO)
    report.summary.update(ratio_fields("decode_diffusers_over_presto", ratio))
    report.save(json)
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


def step_summary(samples: measure.Samples) -> dict[str, Any]:
    """The quoted ratios, of sums over the steps alone, in and outside of CUDA graphs, and the sums themselves."""
    summary: dict[str, Any] = {"rounds": samples.rounds}
    for mode in ("", GRAPH):
        for ratio, (over, under) in RATIOS.items():
            summary.update(ratio_fields(ratio + mode, measure.paired_ratio(samples, over + mode, under + mode)))
    summary["steps_ms"] = {name: rounded(samples.percentile(name, 50)) for name in samples.times}
    return summary


def rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 4)
