"""How much sooner one search comes to the error that another ends with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from presto_models.metrics.control.runs import Run
from presto_models.metrics.control.summary import FEWEST, best_so_far, seconds_until


def race(of: Sequence[Run], by: Sequence[Run], *, resamples: int, seed: int) -> dict[str, Any] | None:
    """The time ``of`` needs over the time ``by`` needs until their median error is that which ``of`` ends with.

    The error is the median over runs of the least error so far; the times are medians over runs of all a call takes up
    to that step (:func:`seconds_until`).  Runs are paired by their number and resampled as pairs; in a resample the
    error is taken anew.

    ``error``: come to.  ``seconds``: of both.  ``ratio``: value, low, high; 0 where ``by`` never comes there.
    ``music``: the median error of both ones' finished music: the search of a surrogate sees the surrogate's.
    ``runs``: pairs there are; None for no pair, or where one does not search.
    """
    other = {run.number: run for run in by}
    pairs = [(run, other[run.number]) for run in of if run.number in other]
    if not pairs or not all(a.history and b.history for a, b in pairs):
        return None
    sides = [_Side([pair[side] for pair in pairs]) for side in (0, 1)]
    error, seconds = _meet(sides, np.arange(len(pairs)))
    result: dict[str, Any] = {
        "runs": len(pairs),
        "error": error,
        "seconds": [second if math.isfinite(second) else None for second in seconds],
        "ratio": {"value": seconds[0] / seconds[1], "low": None, "high": None},
        "music": [median(pair[side].error for pair in pairs) for side in (0, 1)],
    }
    if len(pairs) >= FEWEST:
        rng = np.random.default_rng(seed)
        drawn = [_meet(sides, rng.integers(0, len(pairs), len(pairs)))[1] for _ in range(resamples)]
        low, high = np.percentile([a / b for a, b in drawn], [2.5, 97.5]).tolist()
        result["ratio"] |= {"low": low, "high": high}
    return result


class _Side:
    """Best errors so far and seconds up to each step, both ``[runs, steps]``."""

    def __init__(self, runs: Sequence[Run]) -> None:
        steps = min(len(run.history) for run in runs)
        self.errors = np.stack([best_so_far(run)[:steps] for run in runs])
        self.seconds = np.array([[seconds_until(run, k) for k in range(steps)] for run in runs])

    def until(self, error: float, drawn: np.ndarray) -> float:
        there = np.flatnonzero(np.median(self.errors[drawn], axis=0) <= error)
        return float(np.median(self.seconds[drawn, there[0]])) if len(there) else math.inf


def _meet(sides: Sequence[_Side], drawn: np.ndarray) -> tuple[float, tuple[float, float]]:
    """(the error, the seconds of both)."""
    error = float(np.median(sides[0].errors[drawn, -1]))
    return error, (sides[0].until(error, drawn), sides[1].until(error, drawn))
