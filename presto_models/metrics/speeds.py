"""How long methods take against each other, on a machine that drifts.

Clocks, neighbours and heat change within minutes.  So a round runs every method once, in a new order, and a ratio is
taken within each round, where both met the same machine; what is reported is the median of those ratios.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from presto_models.metrics.embedded import Interval


def interleaved(
    measures: Mapping[str, Callable[[int], Mapping[str, float]]],
    *,
    rounds: int,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, dict[str, list[float]]]:
    """Runs every method once in each round, in a fresh order; the first round of ``rounds + 1`` warms up, unkept.

    Args:
        measures: name -> runs that method once, told a number no other run has, and gives its times by part.
        progress: wraps the rounds' numbers, to show how far they are.

    Returns name -> part -> one time a round; equal places of two methods are of one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    shuffle, number = random.Random(seed), 0
    times: dict[str, dict[str, list[float]]] = {name: {} for name in measures}
    for index in progress(range(rounds + 1)):
        for name in shuffle.sample(list(measures), len(measures)):
            for part, value in measures[name](number).items():
                if index > 0:
                    times[name].setdefault(part, []).append(value)
            number += 1
    return times


def speedup(over: Sequence[float], under: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """How many times longer ``over`` takes than ``under``, round by round: the median ratio and its 95 % bootstrap
    interval."""
    ratios = np.array(over, dtype=np.float64) / np.array(under, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(ratios), (resamples, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), [2.5, 97.5])
    return Interval(float(np.median(ratios)), float(low), float(high))
