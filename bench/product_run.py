"""The product's part of `python -m bench latency`: warm, cold, memory, energy, and the tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from bench import cold, measure, product_stages, show, subprocesses
from bench.product_stages import MONO, TOTAL, Product, Timed
from bench.results import Report, Row
from bench.telemetry import Watch

NEEDED = {"p95": 72, "p99": 368}
"""How many runs an interval of a percentile needs (measure.percentile_interval)."""


def time_product(
    made: Product,
    batches: Sequence[int],
    report: Report,
    watched: Watch,
    *,
    rounds: int,
    seconds: float,
    interval: float,
    json: str | None,
) -> bool:
    """Times every batch size, interleaved; returns whether Ctrl-C ended it."""
    report.summary["product"] = made.described()
    if made.no_prompt is not None:
        show.console.print(f"prompt: not timed, {made.no_prompt}", markup=False)
    timed = [Timed(made, batch) for batch in batches]
    before = list(report.rows)

    def keep(samples: measure.Samples) -> None:
        report.rows = before + [row for each in timed for row in each.rows(samples)]
        report.save(json)

    on_gpu = made.pipeline.engine.capture
    made.keep_graphs(2 * len(batches))  # mono and stereo
    with show.stage(f"{made.spec.name}: first calls" + (", capturing CUDA graphs" if on_gpu else "")):
        for each in timed:
            for _ in range(2 if on_gpu else 1):
                each.staged()
                if on_gpu:
                    each.whole()
                    each.whole(stereo=False)
    with show.rounds(f"{made.spec.name}, batch {' '.join(map(str, batches))}") as on_progress, watched:
        samples = measure.interleave(
            {str(each.batch): each for each in timed},
            parts=len(timed[0].parts),
            rounds=rounds,
            seconds=seconds,
            min_rounds=2,
            warmup=0,
            on_progress=on_progress,
            on_round=keep,
            enough=product_stages.settled(timed, interval),
        )
    keep(samples)
    if not samples.interrupted:
        for each in timed:
            with show.stage(f"energy of batch {each.batch}"):
                extend(report, each.batch, product_stages.energy(each))
    report.save(json)
    return samples.interrupted


def time_cold(spec: product_stages.Spec, batches: Sequence[int], runs: int, report: Report, json: str | None) -> None:
    """Cold starts, and the memory of every batch size, each in a process of its own."""
    found = cold.ColdStarts()
    with show.rounds(f"{spec.name}: cold starts") as on_progress:
        try:
            cold.start(spec, batches, runs, found, on_progress=on_progress)
        except subprocesses.ChildError as error:
            report.refuse(error, stage="cold start")
        finally:  # Ctrl-C keeps the processes that were done
            report.rows += found.rows(batches[0])
            report.meta["cold"] = found.caches()
            for batch, memory in found.memory.items():
                extend(report, batch, memory)
            report.save(json)


def extend(report: Report, batch: int, fields: dict[str, Any]) -> None:
    """More about one generation: into the rows of this batch's total."""
    for row in report.rows:
        if row.get("stage") == TOTAL and row.get("batch") == batch and "kind" not in row:
            row.update(fields)


def totals(rows: Sequence[Row], batch: int = 1) -> dict[str, float]:
    """Median milliseconds from prompt to waveform, "mono" and "stereo": of the graph where there is one."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.get("batch") == batch and row.get("stage") == TOTAL and row.get("ms_p50") is not None:
            found.setdefault(row["mode"], {})[row.get("kind", "whole")] = round(row["ms_p50"], 4)
    best = found.get(product_stages.GRAPH) or found.get(product_stages.WARM) or {}
    if "mono" in best:
        return {"mono": best["mono"], "stereo": best["whole"]}
    return {"mono": best["whole"]} if best else {}


def product_table(described: dict[str, Any], rows: Sequence[Row]) -> Table:
    """The stages of every batch size, warm.  A percentile without an interval shows as a dash."""
    columns = ("batch", "stage", "mode", "sigma", "blocks", "p50 ms", "±", "p95 ms", "p99 ms")
    cells = [
        (
            row["batch"],
            MONO if "kind" in row else row["stage"],
            row["mode"],
            show.number(row["sigma"]),
            row["budget"],
            show.number(row["ms_p50"]),
            _half_width(row),
            show.number(row["ms_p95"] if row["rounds"] >= NEEDED["p95"] else None),
            show.number(row["ms_p99"] if row["ms_p99_interval"] else None),
        )
        for row in rows
        if row.get("mode") in (product_stages.WARM, product_stages.GRAPH)
    ]
    d = described
    title = f"{d['name']}, {d['weights']} weights, {d['dtype']}, {d['seconds']:g} s, {d['sampler']} {d['steps']} steps"
    return show.table(title, columns, cells, left=3)


def product_lines(rows: Sequence[Row]) -> list[str]:
    """Too few runs for a percentile; memory and energy of a generation."""
    warm = [row for row in rows if row.get("mode") in (product_stages.WARM, product_stages.GRAPH)]
    made = min((row["rounds"] for row in warm), default=0)
    short = [f"{name} needs {runs} runs" for name, runs in NEEDED.items() if made < runs]
    lines = [f"{', '.join(short)}; {made} were made"] if short and warm else []
    for row in warm:
        if row["stage"] != TOTAL or row["mode"] != product_stages.WARM or "kind" in row:
            continue
        parts = []
        if row.get("peak_bytes") is not None:
            parts.append(f"peak {_megabytes(row['peak_bytes'])}, before it {_megabytes(row['resting_bytes'])}")
            parts.append(f"weights {_megabytes(row['weights_bytes'])}")
        if row.get("reserved_bytes") is not None:
            parts.append(f"reserved {_megabytes(row['reserved_bytes'])}")
        joules = row.get("energy_j_per_clip")
        if "energy_j_per_clip" in row:
            parts.append(f"energy unknown: {row['no_energy']}" if joules is None else f"{joules:.3g} J a clip")
        if parts:
            lines.append(f"batch {row['batch']}: {', '.join(parts)}")
    return lines


def cold_table(rows: Sequence[Row], batch: int) -> Table:
    """In seconds."""
    cells = [
        (row["stage"], f"{row['ms_p50'] / 1e3:.2f}", " to ".join(f"{ms / 1e3:.2f}" for ms in row["ms_range"]))
        for row in rows
        if row.get("mode") == cold.COLD
    ]
    return show.table(f"cold start, batch {batch}", ("stage", "median s", "range s"), cells)


def cold_line(caches: dict[str, Any]) -> str:
    """What the cold starts were."""
    compiled = max(caches["triton_files_compiled"], default=0)
    return f"new processes ({caches['processes']}); Triton's cache empty at their start, {compiled} files after"


def _half_width(row: Row) -> str | None:
    share = product_stages.half_width(np.array(row["samples_ms"]))
    return f"{100 * share:.1f} %" if np.isfinite(share) else None


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
