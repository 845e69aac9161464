"""When a change counts.

A row is measured in launches.  In a launch both commits run in fresh processes and take turns every two milliseconds,
which gives two readings of log(new / base):

    fastest   the fastest call of each.  A short call finds moments in which nothing disturbs it.
    paired    the median over turns of the ratio of what stood side by side.  A long call never finds such a moment, but
              what disturbs it mostly outlasts the turn and divides out.

Which is better differs from op to op and from machine to machine, so a row is read by the one on which its launches
agree better.  They still differ (where memory came to lie, what else ran) more than turns within one do, so the
launches are the sample: the mean of their middle 60 % is the change, and the t-test for trimmed means (Yuen 1974) gives
its interval and how probable it is by chance.  A launch that met a noisy neighbour may be off by half; without trimming
a single one hides everything.

    screening     every row, a few launches.  A row whose change is above half of `fail_above` is a suspect.
    confirmation  the suspects alone, measured anew until each interval is narrower than `precision` either side.
                  Slower is what is above `fail_above` and, after Holm's correction for the number of suspects, less
                  probable by chance than `alpha`.

The confirmation alone bounds false alarms: its data know nothing of the screening's, which also chose the reading, so
identical commits fail with a probability of at most `alpha`, however many rows there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

READINGS = ("fastest", "paired")
Launches = list[dict[str, float]]
"""log(new / base) of each launch, by reading."""

Measure = Callable[[Sequence[str], int], Mapping[str, Launches]]
"""measure(rows, launches): that many more launches of these rows; none of any row once the time is over."""

TRIM = 0.2  # of the launches at either end: one of six, three of eighteen

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
    screen: int = 6
    confirm: int = 6
    most: int = 24


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
    """What was found of a row: how it was read, the change that decided, and the corrected p-value."""

    verdict: Verdict
    reading: str
    change: Change
    p_value: float
    confirmed: bool


def read(launches: Launches) -> str:
    """The reading on which these launches agree better."""
    return min(READINGS, key=lambda reading: change_of([launch[reading] for launch in launches]).half_width)


def change_of(launches: Sequence[float]) -> Change:
    """The change that the launches' log(new / base) show; with a single one its interval is unbounded."""
    from scipy import stats

    ordered, count = np.sort(launches), len(launches)
    cut = int(TRIM * count)
    kept = ordered[cut : count - cut]
    middle, freedom = float(kept.mean()), len(kept) - 1
    if freedom < 1:
        return Change(math.expm1(middle), -1.0, math.inf, 1.0, 1.0, count)
    winsorised = np.clip(ordered, kept[0], kept[-1])
    error = max(float(winsorised.std(ddof=1)) / ((1 - 2 * cut / count) * math.sqrt(count)), 1e-9)
    reach = float(stats.t.ppf(0.975, freedom)) * error
    slower, faster = (float(stats.t.sf(sign * middle / error, freedom)) for sign in (1, -1))
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
    found = measure(rows, rule.screen)
    readings = {row: read(launches) for row, launches in found.items()}
    screened = {row: change_of([launch[readings[row]] for launch in launches]) for row, launches in found.items()}
    p_values = holm([change.p_faster for change in screened.values()])
    outcomes = {
        row: Outcome(_faster(change, p, rule), readings[row], change, p, False)
        for (row, change), p in zip(screened.items(), p_values, strict=True)
    }
    suspects = [row for row, change in screened.items() if change.change > rule.fail_above / 2]
    # A suspect for which no time is left stays one.
    outcomes |= {row: Outcome("inconclusive", readings[row], screened[row], 1.0, False) for row in suspects}
    confirmed = _confirm(measure, suspects, readings, rule)
    p_values = holm([change.p_slower for change in confirmed.values()])
    for (row, change), p in zip(confirmed.items(), p_values, strict=True):
        outcomes[row] = Outcome(_confirmed(change, p, rule), readings[row], change, p, True)
    return outcomes


def _faster(change: Change, p_value: float, rule: Rule) -> Verdict:
    return "faster" if p_value < rule.alpha and change.change < -rule.fail_above else "same"


def _confirm(measure: Measure, suspects: Sequence[str], readings: Mapping[str, str], rule: Rule) -> dict[str, Change]:
    """What fresh launches of the suspects show."""
    logs: dict[str, list[float]] = {row: [] for row in suspects}
    wanted, more = list(suspects), rule.confirm
    while wanted and more > 0:
        found = measure(wanted, more)
        if not found:  # out of time: what there is decides
            break
        for row, launches in found.items():
            logs[row] += [launch[readings[row]] for launch in launches]
        more = min(3, rule.most - len(logs[wanted[0]]))
        wanted = [row for row in wanted if not _certain(change_of(logs[row]), rule)]
    return {row: change_of(each) for row, each in logs.items() if each}


def _certain(change: Change, rule: Rule) -> bool:
    """Whether the interval is narrow enough; a change of 50 % need not be known to 1 %."""
    return change.half_width <= max(rule.precision, abs(change.change) / 5)


def _confirmed(change: Change, p_value: float, rule: Rule) -> Verdict:
    if change.change > rule.fail_above and p_value < rule.alpha:
        return "slower"
    # Neither shown to be slower nor shown to be within what is accepted.
    return "inconclusive" if change.high > rule.fail_above and not _certain(change, rule) else "same"
