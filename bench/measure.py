"""Interleaved, shuffled, paired timing.

Machines drift: clocks, neighbours, heat. So nothing is timed for long by itself. A round runs every implementation
once, in a new order, and a ratio is taken within each round, where both sides met the same machine; the figure reported
is the median of those ratios with a bootstrap interval.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

ORDER_SEED = 0  # of the order within the rounds; in every result file's meta

Measure = Callable[[int], float]
"""Runs one part of an implementation once (a step of a generation; an op has part 0 only); returns milliseconds."""


@dataclass
class Samples:
    """Milliseconds by implementation and part: `times[name][part]` is a list with one value a round.

    Every implementation has equally many values of a part, taken in the same rounds, so values pair up by index.
    """

    times: dict[str, list[list[float]]]
    interrupted: bool = False

    @property
    def rounds(self) -> int:
        """Rounds in which every part was measured."""
        return min((len(values) for parts in self.times.values() for values in parts), default=0)

    def ms(self, name: str, part: int | None = None) -> np.ndarray:
        """One part's values, or (part None) the sum over all parts for each whole round."""
        if part is not None:
            return np.array(self.times[name][part], dtype=np.float64)
        return np.array([values[: self.rounds] for values in self.times[name]], dtype=np.float64).sum(axis=0)

    def percentile(self, name: str, percent: float, part: int | None = None) -> float | None:
        values = self.ms(name, part)
        return float(np.percentile(values, percent)) if len(values) else None


@dataclass(frozen=True)
class Ratio:
    """Median over rounds of time(over) / time(under), with the 95 % bootstrap interval of that median."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def clear(self) -> bool:
        """Whether it can be told from 1: the interval does not hold 1 and is no wider than the difference from 1.

        What is compared with itself, 1 in every round, is no doubt either.
        """
        if self.low == self.high == 1:
            return True
        return not self.low <= 1 <= self.high and self.high - self.low <= abs(self.median - 1)


def interleave(
    measures: Mapping[str, Measure],
    *,
    parts: int = 1,
    rounds: int,
    seconds: float = float("inf"),
    min_rounds: int = 3,
    warmup: int = 1,
    seed: int = ORDER_SEED,
    on_progress: Callable[[float], object] = lambda share: None,
    on_round: Callable[[Samples], object] = lambda samples: None,
    enough: Callable[[Samples], bool] = lambda samples: False,
    clock: Callable[[], float] = time.perf_counter,
) -> Samples:
    """Each round goes through the parts, and runs every implementation's part once, in a fresh order.

    Stops after `rounds` rounds, or earlier once `seconds` have passed or `enough` is true of the samples, and at least
    `min_rounds` are in. Ctrl-C ends it too: what was measured so far is returned with `interrupted` set; a part that
    not all had finished is dropped.

    Args:
        measures: name → runs part i once and returns its milliseconds.
        warmup: rounds that are run first and not kept.
        on_progress: called after each part with the share done, 0 to 1.
        on_round: called after each whole round with what is there so far.
    """
    shuffle = random.Random(seed)
    samples = Samples({name: [[] for _ in range(parts)] for name in measures})
    started = clock()
    try:
        for index in range(-warmup, rounds):
            if index == 0:
                started = clock()
            if index >= min_rounds and (clock() - started >= seconds or enough(samples)):
                break
            for part in range(parts):
                order = list(measures)
                shuffle.shuffle(order)
                values = {name: measures[name](part) for name in order}
                if index >= 0:
                    _keep(samples, part, values)
                    done = index + (part + 1) / parts
                    on_progress(max(done / rounds, min(done / min_rounds, (clock() - started) / max(seconds, 1e-9))))
            if index >= 0:
                on_round(samples)
    except KeyboardInterrupt:
        samples.interrupted = True
        _drop_unpaired(samples)
    return samples


def _keep(samples: Samples, part: int, values: Mapping[str, float]) -> None:
    for name, milliseconds in values.items():
        samples.times[name][part].append(milliseconds)


def _drop_unpaired(samples: Samples) -> None:
    for of_one_part in zip(*samples.times.values(), strict=True):
        paired = min(map(len, of_one_part))
        for values in of_one_part:
            del values[paired:]


def paired_ratio(
    samples: Samples, over: str, under: str, part: int | None = None, *, resamples: int = 2000
) -> Ratio | None:
    """How many times longer `over` takes than `under`: median of the per-round ratios and its 95 % bootstrap interval.

    None where either was not measured or no round was finished.
    """
    if over not in samples.times or under not in samples.times:
        return None
    return median_interval(samples.ms(over, part) / samples.ms(under, part), resamples=resamples)


def median_interval(values: np.ndarray, *, resamples: int = 2000) -> Ratio | None:
    """The median of one value a round with its 95 % bootstrap interval; None without any."""
    if not len(values):
        return None
    picks = np.random.default_rng(0).integers(0, len(values), size=(resamples, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(values)), float(low), float(high), len(values))


def percentile_interval(values: np.ndarray, percent: float, confidence: float = 0.95) -> list[float] | None:
    """Between which two of the sorted values the true percentile lies, whatever the distribution; None with too few.

    The number of values below the percentile is binomial, so the ranks are that distribution's tails (order statistics;
    Conover, Practical Nonparametric Statistics, 3.2).  The p99 needs 368 values, the p95 72, the median 6.
    """
    count, share, tail = len(values), percent / 100, (1 - confidence) / 2
    logs = [
        math.lgamma(count + 1)
        - math.lgamma(k + 1)
        - math.lgamma(count - k + 1)
        + k * math.log(share)
        + (count - k) * math.log1p(-share)
        for k in range(count + 1)
    ]
    below = np.cumsum(np.exp(logs))  # below[k]: probability that at most k values lie below the percentile
    low = int(np.searchsorted(below, tail, side="right")) - 1  # the largest rank with at most `tail` below it
    high = int(np.searchsorted(below, 1 - tail))
    if low < 0 or high >= count:
        return None
    ordered = np.sort(values)
    return [float(ordered[low]), float(ordered[high])]


def repeats_for(
    function: Callable[[], object], least_ms: float, *, clock: Callable[[], float] = time.perf_counter
) -> int:
    """How many calls make one sample last `least_ms`, so that the clock's own cost and grain vanish in it."""
    function()
    started = clock()
    function()
    once_ms = max((clock() - started) * 1e3, 1e-4)
    return max(1, min(1000, round(least_ms / once_ms)))


def cpu_timer(
    function: Callable[[], object],
    *,
    prepare: Callable[[], object] | None = None,
    repeats: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Measure:
    """Milliseconds a call of `function`, mean of `repeats` calls; `prepare` runs before each call and is not timed."""

    def measure(part: int = 0) -> float:
        total = 0.0
        if prepare is None:
            started = clock()
            for _ in range(repeats):
                function()
            total = clock() - started
        else:
            for _ in range(repeats):
                prepare()
                started = clock()
                function()
                total += clock() - started
        return total / repeats * 1e3

    return measure


class Marks:
    """Moments of the host's clock; :meth:`between` are the milliseconds from each to the next."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock, self.moments = clock, list[float]()

    def mark(self) -> None:
        self.moments.append(self.clock())

    def between(self) -> list[float]:
        return [(after - before) * 1e3 for before, after in itertools.pairwise(self.moments)]
