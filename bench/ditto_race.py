"""`python -m bench ditto --race`: how much sooner DITTO-2 has music with the error that DITTO ends with.

Both do the same task from the same seeds, one after the other in a random order.  What counts is the error of the music
as it would be handed over then: of the best noise so far, decoded with all steps of the method's walk.  DITTO's search
knows it; DITTO-2's sees its surrogate alone, so that its music is made after every ``every``-th step, with the clock
stopped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.table import Table

from bench import machine, measure, show
from bench.ditto_tasks import CRESCENDO, DITTO, DITTO_2, METHODS, Sizes
from bench.names import PRESTO
from bench.results import Report, Row, ratio_fields, sample_fields
from presto_models.ditto import Intensity
from presto_models.ditto.search import Search
from presto_models.ditto.setup import Setup
from presto_models.pipeline import PrestoPipeline

SHARES = (0.5, 0.75, 0.9, 1.0)
"""Levels of error: DITTO's first error, less this share of what it gains in all its steps."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Race:
    """``steps``: of Adam, by method.  ``every``: so many steps of DITTO-2 its music is made.  ``threshold``: an error
    to be reached, in dB², instead of the levels.
    """

    runs: int
    steps: dict[str, int]
    every: int
    threshold: float | None
    prompt: str


def run(report: Report, sizes: Sizes, race: Race, json: str | None) -> None:
    """Fills the report, run by run."""
    with show.stage("models"):
        pipelines = {method: sizes.pipeline(method) for method in METHODS}
    order = random.Random(measure.ORDER_SEED)
    methods, total, done = list(METHODS), race.runs * sum(race.steps.values()), 0
    with show.rounds(f"{race.runs} runs of both") as on_progress:
        for seed in range(race.runs):
            order.shuffle(methods)
            rows = {}
            for method in methods:
                rows[method] = follow(
                    setup(pipelines[method], method, sizes, race, seed),
                    every=race.every,
                    on_step=partial(_advance, on_progress, done, total),
                )
                done += race.steps[method]
            report.rows += [{"method": method, "stage": "search", "seed": seed, **rows[method]} for method in METHODS]
            report.summary["race"] = summarise(report.rows, race.threshold)
            report.save(json)


def _advance(on_progress: Callable[[float], object], done: int, total: int, step: int) -> None:
    on_progress((done + step) / total)


def setup(pipeline: PrestoPipeline, method: str, sizes: Sizes, race: Race, seed: int) -> Setup:
    """The task, the same for both methods."""
    return Setup.of(
        pipeline,
        Intensity(curve=CRESCENDO),
        prompt=race.prompt,
        seconds=sizes.audio,
        seed=seed,
        options=replace(sizes.options(method), steps=race.steps[method]),
    )


def follow(given: Setup, *, every: int, on_step: Callable[[int], object], clock: Clock = time.perf_counter) -> Row:
    """A search, its steps timed; ``errors`` are of the music before the first step and after each, null where that
    was not asked; ``start_ms`` what is computed before the first step; ``finish_ms`` makes the music of a noise.
    """
    synchronize = partial(machine.synchronize, given.scene.device)

    def timed(call: Callable[[], Any]) -> tuple[Any, float]:
        synchronize()
        started = clock()
        result = call()
        synchronize()
        return result, 1e3 * (clock() - started)

    options, surrogate = given.options, given.near is not given.far
    search, start = timed(lambda: _search(given))
    made = given.walk(given.far)
    bound = search.bound[0]

    def music() -> torch.Tensor:
        with torch.no_grad():
            return bound.error(given.scene.made(made(search.best_noise)))

    first = float(music())
    errors: list[float | None] = [first]
    if not np.isfinite(first):
        raise ArithmeticError("the error of the music was NaN or infinite before the first step; try --dtype fp32")
    took = []
    for step in range(1, options.steps + 1):
        took.append(timed(search.step)[1])
        asked = step % every == 0 or step == options.steps
        # The best error of DITTO's own walk is that of the music, known without making it.
        error = (float(music()) if asked else None) if surrogate else float(search.best)
        errors.append(error if error is None or np.isfinite(error) else None)
        on_step(step)
    error, finish = timed(music)
    return {
        "batch": given.scene.batch,
        "latents": given.scene.length,
        "implementation": PRESTO,
        **sample_fields(np.array(took)),
        "start_ms": start,
        "finish_ms": finish,
        "errors": errors,
        "last_error": float(error),
    }


def _search(given: Setup) -> Search:
    return Search(
        given.walk(given.near),
        given.scene,
        given.bound,
        given.noise(),
        steps=given.options.steps,
        learning_rate=given.options.learning_rate,
    )


def seconds_to(row: Row, level: float) -> float | None:
    """Until music with at most this error is there; None where it never is."""
    times = (row["start_ms"] + row["finish_ms"] + np.cumsum([0.0, *row["samples_ms"]])) / 1e3
    reached = [second for second, error in zip(times, row["errors"], strict=True) if _is_at_most(error, level)]
    return float(reached[0]) if reached else None


def _is_at_most(error: float | None, level: float) -> bool:
    return error is not None and error <= level


def summarise(rows: Sequence[Row], threshold: float | None) -> dict[str, Any]:
    """Errors at the start and the end, and for every level the ratio of the times to it."""
    runs: dict[int, dict[str, Row]] = {row["seed"]: {} for row in rows}
    for row in rows:
        runs[row["seed"]][row["method"]] = row
    pairs = [(run[DITTO], run[DITTO_2]) for run in runs.values()]
    found: dict[str, Any] = {"runs": len(pairs)}
    for method, own in zip(METHODS, zip(*pairs, strict=True), strict=True):
        found[method] = {
            "first_error": float(np.median([row["errors"][0] for row in own])),
            "last_error": float(np.median([row["last_error"] for row in own])),
            "step_ms": float(np.median([row["ms_p50"] for row in own])),
            "seconds": float(np.median([_whole(row) for row in own])),
        }
    wanted: list[tuple[dict[str, float], Callable[[Row], float]]]
    if threshold is not None:
        wanted = [({"error": threshold}, lambda ditto: threshold)]
    else:
        wanted = [({"share": share}, partial(level_of, share=share)) for share in SHARES]
    found["levels"] = [what | compare(pairs, level) for what, level in wanted]
    return found


def level_of(ditto: Row, share: float) -> float:
    """DITTO's first error less this share of its gain."""
    first, last = ditto["errors"][0], ditto["errors"][-1]
    return first - share * (first - last)


def compare(pairs: Sequence[tuple[Row, Row]], level: Callable[[Row], float]) -> dict[str, Any]:
    """How many of the pairs reach their level, each method's median time to it, and the ratio of the two.

    Where DITTO-2 never does its run counts as 0 times as fast; where DITTO never does, as if it had just at its end.
    """
    ratios, times = [], {DITTO: list[float](), DITTO_2: list[float]()}
    for ditto, second in pairs:
        levels = {method: seconds_to(row, level(ditto)) for method, row in zip(METHODS, (ditto, second), strict=True)}
        for method, seconds in levels.items():
            if seconds is not None:
                times[method].append(seconds)
        sooner = levels[DITTO_2]
        ratios.append(0.0 if sooner is None else (levels[DITTO] or _whole(ditto)) / sooner)
    found = {
        "level": float(np.median([level(ditto) for ditto, _ in pairs])),
        "reached": {method: len(seconds) for method, seconds in times.items()},
        "seconds": {method: float(np.median(seconds)) if seconds else None for method, seconds in times.items()},
    }
    return found | ratio_fields("ditto_over_ditto2", measure.median_interval(np.array(ratios)))


def _whole(row: Row) -> float:
    """Seconds of all steps, and of making the music."""
    return (row["start_ms"] + row["finish_ms"] + sum(row["samples_ms"])) / 1e3


def table(report: Report) -> Table:
    race = report.summary["race"]
    columns = ("error to reach", "dB²", "DITTO s", "runs", "DITTO-2 s", "runs", "times sooner", "95 %")
    cells = [
        (
            f"{100 * each['share']:.0f} % of the gain" if "share" in each else "threshold",
            show.number(each["level"]),
            *(
                cell
                for method in METHODS
                for cell in (show.number(each["seconds"][method]), f"{each['reached'][method]}/{race['runs']}")
            ),
            show.ratio(each, "ditto_over_ditto2"),
            " to ".join(f"{end:.2f}" for end in each["ditto_over_ditto2_interval"]),
        )
        for each in race["levels"]
    ]
    return show.table("time until music with that error is there, and how many runs get there", columns, cells)


def sentence(report: Report) -> str:
    """Where both began and ended."""
    race = report.summary["race"]
    parts = [
        f"{name}: error {show.number(of['first_error'])} to {show.number(of['last_error'])} dB² in "
        f"{show.number(of['seconds'])} s, {show.number(of['step_ms'])} ms a step"
        for name, of in (("DITTO", race[DITTO]), ("DITTO-2", race[DITTO_2]))
    ]
    return "\n".join(parts)
