"""`python -m bench distill --kept`: does a mixed batch cost what its kept blocks cost?

Presto-L's training step, forward and backward, on batches whose samples keep different numbers of blocks, interleaved
in one run. Were the time proportional to the blocks kept, time(share) / time(1) would be the share: a line of slope 1
through 0. What does not shrink with the blocks (the ends of the network, the loss) makes the slope smaller.
"""

from __future__ import annotations

import functools
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table

from bench import measure, show
from bench.cli import BadOption
from bench.distill_tasks import Training, check, timer_of
from bench.names import PRESTO
from bench.results import Report, ratio_fields, timing_fields
from presto_models.distill.layers import LayerLoss
from presto_models.files import written_beside
from presto_models.plots import check_plot_path

if TYPE_CHECKING:
    from bench.distill import DistillOptions

STUDENT, STEP = "student", "step"  # the mixed batch alone; with the self-teacher's pass, which keeps all blocks


def run(report: Report, options: DistillOptions, device: torch.device) -> bool:
    """Fills the report, prints it and draws it; whether Ctrl-C ended it."""
    if options.plot is not None:
        check_plot_path(options.plot)
    if not all(0 < share <= 1 for share in options.shares):
        raise BadOption(f"--shares: {' '.join(map(str, options.shares))}; each must be above 0 and at most 1")
    with show.stage("random weights"):
        training = Training("presto-l", options.sizes, device)
    (player,), depth, size = training.task.players, options.sizes.dit.num_blocks, len(training.batch.names)
    keep_last = options.sizes.dit.keep_last
    cases = {share: spread(share, depth, size, lowest=max(1, keep_last)) for share in {*options.shares, 1.0}}
    cases = {sum(budgets) / (depth * size): budgets for _, budgets in sorted(cases.items())}
    modules: dict[str, Any] = {
        STUDENT: LayerLoss(training.task.student, self_teacher=False),
        STEP: player.module,
    }
    report.summary |= {"batch": size, "latents": training.batch.clean.shape[1]}
    with show.stage("losses and gradients of every mixture against a wider dtype"):
        wrong = [check(training, player, module=modules[STUDENT], budgets=budgets) for budgets in cases.values()]
    for error in filter(None, wrong):
        report.refuse(error, implementation=PRESTO)
    if report.refused:
        return False
    timer = timer_of(device)
    measures = {
        name_of(series, share): timer(functools.partial(training.turn, PRESTO, player, module, budgets=budgets))
        for series, module in modules.items()
        for share, budgets in cases.items()
    }
    with show.rounds(f"{len(cases)} mixtures x {len(modules)}") as on_progress:
        samples = measure.interleave(measures, rounds=options.rounds, seconds=options.seconds, on_progress=on_progress)
    for series in modules:
        summarise(report, samples, series, cases)
    if report.rows:
        show.console.print(table(report))
        for series in modules:
            show.console.print(sentence(series, report.summary[series]))
        if options.plot is not None:
            draw(report, options.plot)
    return samples.interrupted


def spread(share: float, depth: int, size: int, *, lowest: int) -> list[int]:
    """Falling budgets that keep this share of all blocks together, spread as evenly and widely around it as fits."""
    total = min(max(round(share * depth * size), lowest * size), depth * size)
    mean = total / size
    half = min(mean - lowest, depth - mean)
    budgets = [round(mean + half * (1 - 2 * i / max(size - 1, 1))) for i in range(size)]
    for index in cycle(range(size)):
        missing = total - sum(budgets)
        if missing == 0:
            return sorted(budgets, reverse=True)
        budgets[index] = min(max(budgets[index] + (1 if missing > 0 else -1), lowest), depth)
    raise AssertionError("unreachable")


def name_of(series: str, share: float) -> str:
    return f"{series} {share:.4f}"


def summarise(report: Report, samples: measure.Samples, series: str, cases: dict[float, list[int]]) -> None:
    """A row for each share, and the line through them: slope, intercept, largest deviation from proportional."""
    if not samples.rounds:
        return
    full = samples.ms(name_of(series, 1.0))
    relative = np.stack([samples.ms(name_of(series, share)) / full for share in cases])
    deviations = []
    for (share, budgets), ratios in zip(cases.items(), relative, strict=True):
        name = name_of(series, share)
        deviation = measure.median_interval(ratios / share - 1)
        deviations.append(0.0 if deviation is None else deviation.median)
        report.rows.append(
            {
                "series": series,
                "kept_share": round(share, 4),
                "budgets": budgets,
                **timing_fields(samples, name),
                **ratio_fields("over_full", measure.median_interval(ratios)),
                **ratio_fields("deviation", deviation),
            }
        )
    slopes, intercepts = np.polyfit(list(cases), relative, 1)
    report.summary[series] = {
        **ratio_fields("slope", measure.median_interval(slopes)),
        **ratio_fields("intercept", measure.median_interval(intercepts)),
        "largest_deviation": round(max(deviations, key=abs), 4),
    }


def sentence(series: str, line: dict[str, Any]) -> str:
    what = "the mixed batch" if series == STUDENT else "with the self-teacher's full pass"
    (low, high), deviation = line["slope_interval"], 100 * line["largest_deviation"]
    return (
        f"{what}: time / full time = {line['slope']:.3f} share + {line['intercept']:.3f} (slope, 95 %: {low:.3f} to "
        f"{high:.3f}); proportional is 1 and 0; at most {deviation:+.1f} % from proportional"
    )


def table(report: Report) -> Table:
    columns = ("timed", "kept", "budgets", "p50 ms", "p95 ms", "over full", "95 %", "from proportional")
    cells = [
        (
            row["series"],
            f"{row['kept_share']:.3f}",
            f"{row['budgets'][0]} to {row['budgets'][-1]}",
            show.number(row["ms_p50"]),
            show.number(row["ms_p95"]),
            f"{row['over_full']:.3f}",
            " to ".join(f"{end:.3f}" for end in row["over_full_interval"]),
            f"{100 * row['deviation']:+.1f} %",
        )
        for row in report.rows
    ]
    summary = report.summary
    title = f"Presto-L's step by kept blocks, {summary['config']}, {summary['blocks']} blocks, {summary['precision']}"
    return show.table(f"{title}, {summary['batch']} x {summary['latents']} latents", columns, cells)


def draw(report: Report, path: str) -> None:
    """Time over that of a full batch against the share of kept blocks, beside the proportional line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="proportional to kept blocks")
    for series, label in ((STUDENT, "mixed batch, forward and backward"), (STEP, "with the self-teacher's full pass")):
        rows = [row for row in report.rows if row["series"] == series]
        shares, medians = [row["kept_share"] for row in rows], [row["over_full"] for row in rows]
        errors = np.abs(np.array([row["over_full_interval"] for row in rows]).T - medians)
        axes.errorbar(shares, medians, errors, marker="o", capsize=3, label=label)
    summary = report.summary
    size = f"{summary['blocks']} blocks, {summary['batch']} x {summary['latents']} latents, {summary['precision']}"
    axes.set(
        xlabel="share of blocks kept", ylabel="time / time of a full batch", xlim=(0, 1.05), ylim=(0, None), title=size
    )
    axes.legend(loc="upper left")
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=120)
