"""How a cost grows: a power law and a line with a fixed part through times at several sizes, and how sure both are.

    ms = c value^p        least squares of ln ms over ln value
    ms = a + b value      least squares with every point weighted by 1 / its median time, so that relative errors count

Each round gives fits of its own, from the points measured in it, where all met the same machine; what is reported is
the median over rounds with its 95 % bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench import measure
from bench.measure import Ratio


@dataclass(frozen=True)
class Fit:
    """Both fits of one cost over one axis.

    ``exponent``: p.  ``coefficient``: c of the medians, given p.  ``fixed_ms``: a.  ``fixed_share``: a / (a + b base),
    below 0 where the cost bends upward and no fixed part is seen.  ``deviation``: of the medians from c value^p, the
    largest, relative, with its sign: what a straight line in a log-log plot cannot say.
    """

    exponent: Ratio
    coefficient: float
    fixed_ms: Ratio
    fixed_share: Ratio
    deviation: float


def fit(values: Sequence[float], milliseconds: np.ndarray, base: float) -> Fit | None:
    """The fits over ``values`` (at least two different ones) of times ``[rounds, values]``; None without a round.

    Args:
        base: where the fixed part's share is taken.
    """
    if not len(milliseconds):
        return None
    x = np.asarray(values, dtype=np.float64)
    medians = np.median(milliseconds, axis=0)
    power = _median(np.polyfit(np.log(x), np.log(milliseconds.T), 1)[0])
    slopes, starts = np.polyfit(x, milliseconds.T, 1, w=1 / medians)
    coefficient = float(np.exp(np.mean(np.log(medians) - power.median * np.log(x))))
    deviations = medians / (coefficient * x**power.median) - 1
    return Fit(
        exponent=power,
        coefficient=coefficient,
        fixed_ms=_median(starts),
        fixed_share=_median(starts / (starts + slopes * base)),
        deviation=float(deviations[np.abs(deviations).argmax()]),
    )


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """p of costs known exactly: the counted floor's."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def unsure(difference: float, found: Ratio) -> bool:
    """Whether the interval is wider than the difference it is quoted for: the figure then says nothing."""
    return found.high - found.low > abs(difference)


def _median(values: np.ndarray) -> Ratio:
    found = measure.median_interval(values)
    assert found is not None
    return found
