"""`python -m bench distill`: one training step of every distillation method, presto beside plain PyTorch on the same
weights, interleaved in one run; with `--kept` the time of a mixed batch against the share of blocks it keeps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.table import Table

from bench import distill_kept, machine, measure, results, show
from bench.cli import option
from bench.distill_tasks import CONFIGS, METHODS, Sizes, Training, check, timer_of
from bench.names import COMPILE, PRESTO, REFERENCE
from bench.results import Report, ratio_fields, timing_fields
from presto_models.training.config import PRECISIONS
from presto_models.training.task import Player

RATIOS = {"reference_over_presto": (REFERENCE, PRESTO), "compile_over_presto": (COMPILE, PRESTO)}


@dataclass(frozen=True)
class DistillOptions:
    """One training step of each distillation method: plain PyTorch, torch.compile, presto; or cost by kept blocks."""

    config: str = option("presto-tiny", "model sizes", choices=CONFIGS)
    methods: tuple[str, ...] = option(tuple(METHODS), "which methods", choices=tuple(METHODS))
    precision: str = option("bf16", "bf16: autocast over fp32 weights, as in training", choices=PRECISIONS)
    batch: int | None = option(
        None, "samples in a step; without it the method's own for presto-tiny, 4 for other sizes"
    )
    latents: int | None = option(None, "length of a sample; without it the method's own, or the config's nominal one")
    blocks: int | None = option(None, "fewer blocks than the config has; each of them costs the same")
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    compile: bool = option(False, "torch.compile of the reference as a second baseline; takes minutes for each method")
    rounds: int = option(30, "rounds at most, of each method")
    seconds: float = option(60.0, "seconds of timing for each method, to the end of the round; at least three rounds")
    kept: bool = option(False, "instead: Presto-L's step with mixed batches against the share of blocks they keep")
    shares: tuple[float, ...] = option((0.33, 0.5, 0.67, 0.83, 1.0), "with --kept: the shares; 1 is always measured")
    plot: str | None = option(None, "with --kept: draw it to this picture file")
    json: str | None = option(None, "write the results to this file")

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.config, self.blocks, self.batch, self.latents, self.precision)


def run(options: DistillOptions) -> int:
    """Checks, times and prints. Exit status 1 where an implementation was refused."""
    device = machine.pick_device(options.device)
    report = results.start("distill", options, device, [options.precision])
    report.summary |= {"config": options.config, "precision": options.precision, "blocks": options.sizes.dit.num_blocks}
    if options.kept:
        interrupted = distill_kept.run(report, options, device)
    else:
        interrupted = any(cost(method, report, options, device) for method in options.methods)
    report.save(options.json)
    if report.rows and not options.kept:
        show.console.print(table(report))
    show.refused(report.refused)
    return 130 if interrupted else 1 if report.refused else 0


def cost(method: str, report: Report, options: DistillOptions, device: torch.device) -> bool:
    """Adds a method's rows and ratios to the report; whether Ctrl-C ended it."""
    with show.stage(f"{method}: random weights"):
        training = Training(method, options.sizes, device)
    turns = training.turns
    names = [REFERENCE, PRESTO]
    with show.stage(f"{method}: losses and gradients against a wider dtype"):
        error = next(filter(None, (check(training, player) for player in turns.values())), None)
    if error is not None:
        report.refuse(error, method=method, implementation=PRESTO)
        names.remove(PRESTO)
    if options.compile:
        with show.stage(f"{method}: torch.compile of the reference"):
            problem = compiled(training)
        if problem is None:
            names.append(COMPILE)
        else:
            report.refuse(problem, method=method, implementation=COMPILE)
    timer = timer_of(device)
    timers = {n: [timer(functools.partial(training.turn, n, player)) for player in turns.values()] for n in names}
    measures = {name: functools.partial(one_of, parts) for name, parts in timers.items()}
    with show.rounds(f"{method} x {len(names)} implementations") as on_progress:
        samples = measure.interleave(
            measures, parts=len(turns), rounds=options.rounds, seconds=options.seconds, on_progress=on_progress
        )
    about = {"method": method, "batch": len(training.batch.names), "latents": training.batch.clean.shape[1]}
    about["kept_share"] = None if training.kept_share is None else round(training.kept_share, 4)
    for turn, times in by_turn(samples, list(turns.values())).items():
        for name in times.times:
            report.rows.append(
                {
                    **about,
                    "turn": turn,
                    "implementation": name,
                    **timing_fields(times, name),
                    **ratio_fields("reference_over_this", measure.paired_ratio(times, REFERENCE, name)),
                }
            )
        figures = report.summary.setdefault(f"{method} {turn}", {})
        for name, pair in RATIOS.items():
            figures.update(ratio_fields(name, measure.paired_ratio(times, *pair)))
    report.save(options.json)
    return samples.interrupted


def one_of(parts: Sequence[measure.Measure], part: int) -> float:
    return parts[part](part)


def by_turn(samples: measure.Samples, players: Sequence[Player]) -> dict[str, measure.Samples]:
    """Each player's turn, and where there are several the mean step over a full cycle of their turns."""
    if len(players) == 1:
        return {"step": samples}
    turns, rounds = {}, samples.rounds
    for part, player in enumerate(players):
        times = {name: [parts[part][:rounds]] for name, parts in samples.times.items()}
        turns[f"{player.name} update"] = measure.Samples(times, samples.interrupted)
    mean = {
        name: [[sum(ms / p.every for ms, p in zip(each, players, strict=True)) for each in zip(*parts, strict=False)]]
        for name, parts in samples.times.items()
    }
    return turns | {"mean step": measure.Samples(mean, samples.interrupted)}


def compiled(training: Training) -> Exception | None:
    """Compiles the reference for every turn; what went wrong, or None."""
    torch._dynamo.reset()
    training.compile()
    # The networks of a method share their code and are called in different ways: more graphs than dynamo expects. CTM
    # walks backward through one graph twice.
    limits = torch._dynamo.config.patch(suppress_errors=False, recompile_limit=64)
    try:
        with limits, torch._functorch.config.patch(donated_buffer=False):
            for player in training.task.players:
                training.turn(COMPILE, player)
    except Exception as problem:
        return problem
    return None


def table(report: Report) -> Table:
    columns = ("method", "turn", "implementation", "p50 ms", "reference/it", "95 %", "kept")
    cells = [
        (
            row["method"],
            row["turn"],
            row["implementation"],
            show.number(row["ms_p50"]),
            show.ratio(row, "reference_over_this"),
            " to ".join(f"{end:.2f}" for end in row.get("reference_over_this_interval", ())) or None,
            show.percent(row["kept_share"]),
        )
        for row in report.rows
    ]
    summary, first = report.summary, report.rows[0]
    title = f"distillation step, {summary['config']}, {summary['blocks']} blocks, {summary['precision']}"
    return show.table(f"{title}, {first['latents']} latents", columns, cells, left=3)
