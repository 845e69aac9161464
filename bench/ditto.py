"""`python -m bench ditto`: a step of DITTO's and of DITTO-2's search, presto beside plain PyTorch on the same weights,
and what it consists of; with `--curve` its memory against the walk's steps; with `--race` DITTO-2 against DITTO.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

import torch
from rich.table import Table

from bench import cuda, ditto_memory, ditto_parts, ditto_plots, ditto_race, figures, machine, measure, results, show
from bench.cli import BadOption, option
from bench.ditto_parts import PARTS, Staged
from bench.ditto_tasks import DITTO, DITTO_2, METHODS, Sizes, Task, check, restart
from bench.names import COMPILE, GRAPH, PRESTO, REFERENCE
from bench.results import Report, ratio_fields, timing_fields
from presto_models.diffusion.sampling import SAMPLERS
from presto_models.ditto.search import Search

TOTAL = "total"
PROMPT = "slow church organ chorale in g minor"


@dataclass(frozen=True)
class DittoBenchOptions:
    """Optimising the starting noise: a step of DITTO and DITTO-2, its parts; or its memory; or a race of the two."""

    methods: tuple[str, ...] = option(METHODS, "whose step", choices=METHODS)
    checkpoint: str = option("presto-tiny", "DITTO's model, a name or a folder")
    student: str = option("presto-tiny-ls", "DITTO-2's model")
    config: str | None = option(None, "random weights of this size for both", choices=("presto-32s", "tiny"))
    audio: float = option(10.0, "seconds of audio")
    batch: int = option(1, "candidates side by side")
    sampling_steps: int = option(20, "steps of DITTO's walk, DDIM")
    guidance: float = option(3.0, "of DITTO's walk; 1 is none")
    surrogate_steps: int = option(1, "steps of DITTO-2's surrogate")
    student_sampler: str | None = option(
        None, "of DITTO-2's walks; without it the product's choice, DDIM", choices=tuple(SAMPLERS)
    )
    student_steps: int | None = option(
        None, "of the walk that makes DITTO-2's music; without it the product's choice, 2"
    )
    dtype: str = option("fp32", "dtype of the network", choices=tuple(machine.DTYPES))
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    compile: bool = option(False, "torch.compile of the reference's network as a second baseline; takes minutes")
    parts: bool = option(True, "also time the parts of a step")
    memory: bool = option(True, "also a step of each side in a process of its own, and compare the peaks")
    rounds: int = option(10, "rounds at most, of each method and of its parts")
    seconds: float = option(
        90.0, "seconds of timing for each method, half as many for its parts; three rounds at least"
    )
    curve: bool = option(False, "instead: DITTO's memory against the steps of its walk, each in a process of its own")
    walks: tuple[int, ...] = option((1, 2, 5, 10, 20, 50), "with --curve: the steps")
    race: bool = option(False, "instead: time until DITTO and DITTO-2 have music with the same error; minutes")
    runs: int = option(4, "with --race: seeds")
    steps: int = option(25, "with --race: steps of DITTO's search")
    second_steps: int = option(80, "with --race: steps of DITTO-2's")
    every: int = option(2, "with --race: after so many steps of DITTO-2 its music is made and its error taken")
    threshold: float | None = option(None, "with --race: an error in dB² to reach, instead of DITTO's own")
    prompt: str = option(PROMPT, "with --race: the text")
    plot: str | None = option(None, "with --curve or --race: draw it to this picture file")
    json: str | None = option(None, "write the results to this file")

    def sizes(self, device: torch.device) -> Sizes:
        names = {field.name for field in fields(Sizes)} - {"device"}
        return Sizes(**{name: getattr(self, name) for name in names}, device=device.type)


def run(options: DittoBenchOptions) -> int:
    """Measures and prints. Exit status 1 where something was refused."""
    check_options(options)
    device = machine.pick_device(options.device)
    sizes = options.sizes(device)
    report = results.start("ditto", options, device, [options.dtype])
    models = " and ".join(dict.fromkeys(model(options, method) for method in options.methods))
    report.summary |= {"config": models, "dtype": options.dtype}
    interrupted = False
    try:
        if options.curve:
            ditto_memory.curve(report, sizes, options.walks, options.json)
        elif options.race:
            steps = {DITTO: options.steps, DITTO_2: options.second_steps}
            race = ditto_race.Race(options.runs, steps, options.every, options.threshold, options.prompt)
            ditto_race.run(report, sizes, race, options.json)
        else:
            interrupted = any(cost(method, report, options, sizes) for method in options.methods)
    except KeyboardInterrupt:
        interrupted = True
    report.save(options.json)
    if report.rows:
        tell(report, options)
    show.refused(report.refused)
    if interrupted:
        show.console.print("stopped; what was measured is kept")
        return 130
    return 1 if report.refused else 0


def model(options: DittoBenchOptions, method: str) -> str:
    """The name of what a method searches in."""
    return options.config or (options.checkpoint if method == DITTO else options.student)


def check_options(options: DittoBenchOptions) -> None:
    """BadOption before anything is measured."""
    counts = ("batch", "sampling_steps", "surrogate_steps", "student_steps", "rounds")
    for name in (*counts, "runs", "steps", "second_steps", "every"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise BadOption(f"--{name.replace('_', '-')}: {value}; must be at least 1")
    if not options.audio > 0:
        raise BadOption(f"--audio: {options.audio:g}; must be above 0")
    if options.curve and options.race:
        raise BadOption("--curve and --race: one at a time")
    if options.plot is not None and not (options.curve or options.race):
        raise BadOption("--plot: goes with --curve or --race")
    if options.race and options.config is not None:
        raise BadOption("--config: random weights follow no control; --race takes --checkpoint and --student")
    if options.race and options.batch != 1:
        raise BadOption(f"--batch: {options.batch}; --race makes one sample a run")
    figures.check_path(options.plot)


def cost(method: str, report: Report, options: DittoBenchOptions, sizes: Sizes) -> bool:
    """Adds a method's rows and ratios to the report; whether Ctrl-C ended it."""
    peaks = ditto_memory.peaks(method, sizes, report) if options.memory else {}
    with show.stage(f"{method}: models"):
        task = Task(method, sizes)
    names = [REFERENCE, PRESTO]
    with show.stage(f"{method}: latents and the noise's gradient against float64"):
        wrong = check(task, [PRESTO])
    for name, error in wrong.items():
        report.refuse(error, method=method, stage="step", implementation=name)
        names.remove(name)
    if options.compile:
        task.compile()
        names.append(COMPILE)
    searches = started(task, names, report)
    timer = cuda.event_timer if task.noise.device.type == "cuda" else measure.cpu_timer
    measures = {name: timer(search.step, prepare=partial(restart, search)) for name, search in searches.items()}
    about = {"method": method, "stage": "step", "batch": sizes.batch, "latents": task.plan.length}
    before = list(report.rows)

    def keep(samples: measure.Samples) -> None:
        report.rows = before + [about | row for row in step_rows(samples, peaks)]
        report.summary[method] = summary(samples, task, peaks)
        report.save(options.json)

    with show.rounds(f"{method}: step x {len(measures)} implementations") as on_progress:
        samples = measure.interleave(
            measures,
            rounds=options.rounds,
            seconds=options.seconds,
            warmup=0,  # each has made a step
            on_progress=on_progress,
            on_round=keep,
        )
    keep(samples)
    if samples.interrupted or not options.parts:
        return samples.interrupted
    del measures, searches
    return parts(task, [name for name in names if name != COMPILE], about, report, options)


def started(task: Task, names: list[str], report: Report) -> dict[str, Search]:
    """The searches that are timed, each with its first steps made; what cannot make one is refused.

    On CUDA each twice: as it is, a graph, and launched kernel by kernel.
    """
    graphs = task.noise.device.type == "cuda"
    ways = [(name, True) for name in names] + [(name + GRAPH, False) for name in names if graphs]
    torch._dynamo.reset()
    # The layer schedule gives every step other blocks, each a graph of dynamo's.
    limits = torch._dynamo.config.patch(suppress_errors=False, recompile_limit=64)
    found: dict[str, Search] = {}
    for way, eager in ways:
        try:
            with limits, show.stage(f"{task.method}: first steps of {way}"):
                search = task.search(way.removesuffix(GRAPH), eager=eager)
                for _ in range(1 if eager else 3):  # the third is captured
                    restart(search)
                    search.step()
            found[way] = search
        except Exception as problem:
            report.refuse(problem, method=task.method, stage="step", implementation=way)
    return found


def step_rows(samples: measure.Samples, peaks: dict[str, int]) -> list[results.Row]:
    """One an implementation; a graph is held against the reference's graph."""
    return [
        {
            "part": TOTAL,
            "implementation": name,
            **timing_fields(samples, name),
            "peak_bytes": peaks.get(name.removesuffix(GRAPH)),
            **ratio_fields("reference_over_this", measure.paired_ratio(samples, _baseline(name), name)),
        }
        for name in samples.times
    ]


def _baseline(name: str) -> str:
    return REFERENCE + (GRAPH if name.endswith(GRAPH) else "")


def summary(samples: measure.Samples, task: Task, peaks: dict[str, int]) -> results.Row:
    """Median milliseconds, and the ratios people quote."""
    found: results.Row = {
        "blocks": task.pipeline.config.dit.num_blocks,
        "model_calls": task.plan.sampling.model_calls,
        "step_ms": {name: samples.percentile(name, 50) for name in samples.times},
    }
    for way in ("", GRAPH):
        for other in (REFERENCE, COMPILE):
            ratio = measure.paired_ratio(samples, other + way, PRESTO + way)
            found |= ratio_fields(f"{other}_over_presto{way}", ratio)
    if len(peaks) == 2:
        found["peak_reference_over_presto"] = round(peaks[REFERENCE] / peaks[PRESTO], 4)
    return found


def parts(task: Task, names: list[str], about: results.Row, report: Report, options: DittoBenchOptions) -> bool:
    """Adds a row for each part and implementation; whether Ctrl-C ended it."""
    timers = {name: ditto_parts.timers(Staged(task.search(name, eager=True))) for name in names}
    measures = {name: partial(_one_of, own) for name, own in timers.items()}
    with show.rounds(f"{task.method}: {len(PARTS)} parts of a step") as on_progress:
        samples = measure.interleave(
            measures,
            parts=len(PARTS),
            rounds=options.rounds,
            seconds=options.seconds / 2,
            on_progress=on_progress,
        )
    if not samples.rounds:
        return samples.interrupted
    for name in names:
        whole = samples.percentile(name, 50)
        for index, part in enumerate(PARTS):
            row = about | {"part": part, "implementation": name} | timing_fields(samples, name, index)
            row["share"] = round(row["ms_p50"] / whole, 4)
            row |= ratio_fields("reference_over_this", measure.paired_ratio(samples, REFERENCE, name, index))
            report.rows.append(row)
    report.save(options.json)
    return samples.interrupted


def _one_of(own: list[measure.Measure], part: int) -> float:
    return own[part](part)


def tell(report: Report, options: DittoBenchOptions) -> None:
    """The tables and, where one is wanted, the picture."""
    if options.curve:
        show.console.print(ditto_memory.curve_table(report))
        if options.plot is not None:
            ditto_plots.draw_curve(report, options.plot)
    elif options.race:
        show.console.print(ditto_race.sentence(report), markup=False)
        show.console.print(ditto_race.table(report))
        if options.plot is not None:
            ditto_plots.draw_race(report, options.plot)
    else:
        show.console.print(step_table(report, options))
        if any(row["part"] != TOTAL for row in report.rows):
            show.console.print(parts_table(report))


def step_table(report: Report, options: DittoBenchOptions) -> Table:
    columns = ("search", "implementation", "p50 ms", "p95 ms", "reference/it", "95 %", "peak MB")
    cells = [
        (
            row["method"],
            row["implementation"],
            show.number(row["ms_p50"]),
            show.number(row["ms_p95"]),
            show.ratio(row, "reference_over_this"),
            " to ".join(f"{end:.2f}" for end in row.get("reference_over_this_interval", ())) or None,
            show.number(row["peak_bytes"] / 1e6) if row["peak_bytes"] else None,
        )
        for row in report.rows
        if row["part"] == TOTAL
    ]
    title = f"one step of the search, {report.summary['config']}, {options.dtype}, {options.audio:g} s of audio"
    return show.table(title, columns, cells, left=2)


def parts_table(report: Report) -> Table:
    """Presto's parts beside the reference's."""
    found: dict[tuple[str, str], dict[str, results.Row]] = {}
    for row in report.rows:
        if row["part"] != TOTAL:
            found.setdefault((row["method"], row["part"]), {})[row["implementation"]] = row
    cells = []
    for (method, part), rows in found.items():
        each = [rows.get(name, {}) for name in (REFERENCE, PRESTO)]
        numbers = [cell for row in each for cell in (show.number(row.get("ms_p50")), show.percent(row.get("share")))]
        cells.append((method, part, *numbers, show.ratio(each[1], "reference_over_this")))
    columns = ("search", "part of a step", "reference ms", "share", "presto ms", "share", "reference/presto")
    return show.table("where it goes", columns, cells, left=2)
