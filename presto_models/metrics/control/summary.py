"""What the runs of a row come to: means and medians with bootstrap intervals over runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from presto_models.metrics.control.runs import Run

FEWEST = 5  # runs an interval needs: with 4 a bootstrap of them has too few different values
POINTS = 32  # of a path
Estimate = dict[str, float | None]


def estimate(
    values: Sequence[float], statistic: Callable[..., Any] = np.mean, *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """``value``, and ``low`` and ``high`` of its 95 % interval: percentiles over resampled runs; None below ``FEWEST``.

    Args:
        statistic: of an array, over ``axis=``: ``numpy.mean`` or ``numpy.median``.  What comes out infinite is None.
    """
    own = np.asarray(values, dtype=np.float64)
    found = [float(statistic(own, axis=0)), math.nan, math.nan]
    if len(own) >= FEWEST:
        drawn = own[np.random.default_rng(seed).integers(0, len(own), (resamples, len(own)))]
        found[1:] = np.percentile(statistic(drawn, axis=1), [2.5, 97.5], method="nearest").tolist()
    return {
        name: value if math.isfinite(value) else None
        for name, value in zip(("value", "low", "high"), found, strict=True)
    }


def summarise(runs: Sequence[Run], threshold: float | None, *, resamples: int, seed: int) -> dict[str, Any]:
    """All figures of a row that need no ears.

    ``error``, ``before``, ``figures``, ``drift``: means.  ``seconds_per_step``, ``seconds``, ``memory_mb``: medians.
    ``reached``: the share of runs whose music reached the threshold; ``steps_to_threshold`` and
    ``seconds_to_threshold``: medians over all runs, None where fewer than half of the searches came there.
    ``path``: [seconds, median error so far] of a search, ``end``: the same of the finished music.
    """

    def of(values: Sequence[float], statistic: Callable[..., Any] = np.mean) -> Estimate:
        return estimate(values, statistic, resamples=resamples, seed=seed)

    def middle(values: Sequence[float | None]) -> Estimate | None:
        known = [value for value in values if value is not None]
        return of(known, np.median) if known else None

    names = list(dict.fromkeys(name for run in runs for name in run.figures))
    result: dict[str, Any] = {
        "error": of([run.error for run in runs]),
        "before": of([run.before for run in runs]),
        "drift": of([run.drift for run in runs]),
        "figures": {name: of([run.figures[name] for run in runs if name in run.figures]) for name in names},
        "seconds_per_step": middle([run.seconds_per_step for run in runs]),
        "seconds": middle([run.seconds for run in runs]),
        "memory_mb": middle([None if run.memory is None else run.memory / 1e6 for run in runs]),
        "end": [median(run.seconds for run in runs), median(run.error for run in runs)],
        "path": _path(runs),
    }
    if threshold is not None:
        result["reached"] = sum(run.error <= threshold for run in runs) / len(runs)
        if all(run.history for run in runs):
            steps = [steps_until(run, threshold) for run in runs]
            result["steps_to_threshold"] = of(steps, np.median)
            seconds = [seconds_until(run, int(k)) if k < math.inf else k for run, k in zip(runs, steps, strict=True)]
            result["seconds_to_threshold"] = of(seconds, np.median)
    return result


def best_so_far(run: Run) -> np.ndarray:
    """The least error of a search up to each of its steps, ``[steps]``; inf where there was none yet."""
    return np.minimum.accumulate(np.nan_to_num(np.asarray(run.history, dtype=np.float64), nan=math.inf))


def steps_until(run: Run, threshold: float) -> float:
    """Steps of Adam after which the error was no larger; inf where it never was."""
    there = np.flatnonzero(best_so_far(run) <= threshold)
    return float(there[0]) if len(there) else math.inf


def seconds_until(run: Run, steps: int) -> float:
    """Seconds until the music is there, had the search ended once the error after ``steps`` steps was known: as many
    steps and one, and all that a call does beside them."""
    step = run.seconds_per_step or 0.0
    return (steps + 1) * step + max(0.0, run.seconds - len(run.history) * step)


def _path(runs: Sequence[Run]) -> list[list[float]]:
    shortest = min(len(run.history) for run in runs)
    if not shortest:
        return []
    middle = np.median(np.stack([best_so_far(run)[:shortest] for run in runs]), axis=0)
    steps = np.unique(np.geomspace(1, shortest, POINTS).round().astype(int)) - 1
    path = [[median(seconds_until(run, int(k)) for run in runs), float(middle[k])] for k in steps]
    return [point for point in path if math.isfinite(point[1])]
