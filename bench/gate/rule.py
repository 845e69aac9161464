"""When a change counts.

A row is measured in launches.  In a launch both commits run in fresh processes and take turns every few milliseconds;
what it gives is log(new / base) of their fast calls.  Launches differ (where memory came to lie, which core, what else
ran) far more than turns within one do, so the launches are the sample: their mean is the change, and Student's t over
them gives its interval and how probable it is by chance.

    screening     every row, a few launches.  A row whose change is above half of `fail_above` is a suspect.
    confirmation  the suspects alone, measured anew until each interval is narrower than `precision` either side.
                  Slower is what is above `fail_above` and, after Holm's correction for the number of suspects, less
                  probable by chance than `alpha`.

The confirmation alone bounds false alarms: its data know nothing of the screening's, so identical commits fail with a
probability of at most `alpha`, however many rows there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Launches = list[float]
"""log(new / base) of each launch."""

Measure = Callable[[Sequence[str], int], Mapping[str, Launches]]
"""measure(rows, launches): that many more launches of these rows; none of any row once the time is over."""

Verdict = Literal["same", "slower", "faster", "inconclusive"]


@dataclass(frozen=True)
class Rule:
    """What counts as slower, and how long to look.

    Attributes:
        fail_above: a change that is still accepted; 0.03 is 3 % slower.
        alpha: how often identical commits may fail.
        precision: confirmation goes on until a row's 95 % interval is at most this far, or a fifth of the change, from
            its middle.
        screen: launches of the screening.
        confirm, most: launches of the confirmation at first, and at most.
    """

    fail_above: float = 0.03
    alpha: float = 0.01
    precision: float = 0.01
    screen: int = 4
    confirm: int = 6
    most: int = 18


@dataclass(frozen=True)
class Change:
    """new / base - 1, its 95 % interval, and the probability of at least this much slower (or faster) by chance."""

    change: float
    low: float
    high: float
    p_slower: float
    p_faster: float
    launches: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Outcome:
    """What was found of a row: the change that decided, and the p-value that was held against alpha, corrected."""

    verdict: Verdict
    change: Change
    p_value: float
    confirmed: bool


def change_of(launches: Launches) -> Change:
    """The change that these launches show; with a single launch its interval is unbounded."""
    from scipy import stats

    middle, count = float(np.mean(launches)), len(launches)
    if count < 2:
        return Change(math.expm1(middle), -1.0, math.inf, 1.0, 1.0, count)
    error = max(float(np.std(launches, ddof=1)) / math.sqrt(count), 1e-9)
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    slower, faster = (float(stats.t.sf(sign * middle / error, count - 1)) for sign in (1, -1))
    return Change(math.expm1(middle), math.expm1(middle - reach), math.expm1(middle + reach), slower, faster, count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: held against alpha, all together are wrong with probability alpha at most."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def decide(measure: Measure, rows: Sequence[str], rule: Rule) -> dict[str, Outcome]:
    """Screens all rows, confirms the suspects."""
    screened = {row: change_of(launches) for row, launches in measure(rows, rule.screen).items()}
    outcomes = _unsuspected(screened, rule)
    suspects = [row for row, change in screened.items() if change.change > rule.fail_above / 2]
    if suspects:
        # A suspect for which no time is left stays one.
        outcomes |= {row: Outcome("inconclusive", screened[row], 1.0, False) for row in suspects}
        outcomes |= _confirm(measure, suspects, rule)
    return {row: outcomes[row] for row in screened}


def _unsuspected(screened: Mapping[str, Change], rule: Rule) -> dict[str, Outcome]:
    p_values = holm([change.p_faster for change in screened.values()])
    return {
        row: Outcome("faster" if p < rule.alpha and change.change < -rule.fail_above else "same", change, p, False)
        for (row, change), p in zip(screened.items(), p_values, strict=True)
    }


def _confirm(measure: Measure, suspects: Sequence[str], rule: Rule) -> dict[str, Outcome]:
    launches: dict[str, Launches] = {row: [] for row in suspects}
    wanted, more = list(suspects), rule.confirm
    while wanted:
        found = measure(wanted, more)
        for row, logs in found.items():
            launches[row] += logs
        if not found:  # out of time: what there is decides
            break
        more = min(3, rule.most - len(launches[wanted[0]]))
        wanted = [row for row in wanted if not _certain(change_of(launches[row]), rule)] if more > 0 else []
    changes = {row: change_of(launches[row]) for row in suspects if launches[row]}
    p_values = holm([change.p_slower for change in changes.values()])
    return {
        row: Outcome(_confirmed(change, p, rule), change, p, True)
        for (row, change), p in zip(changes.items(), p_values, strict=True)
    }


def _certain(change: Change, rule: Rule) -> bool:
    """Whether the interval is narrow enough; a change of 50 % need not be known to 1 %."""
    return change.half_width <= max(rule.precision, abs(change.change) / 5)


def _confirmed(change: Change, p_value: float, rule: Rule) -> Verdict:
    if change.change > rule.fail_above and p_value < rule.alpha:
        return "slower"
    # Neither shown to be slower nor shown to be within what is accepted.
    return "inconclusive" if change.high > rule.fail_above and not _certain(change, rule) else "same"
