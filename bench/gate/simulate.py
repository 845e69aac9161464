"""`python -m bench simulate NOISE.json`: how often the gate is wrong, drawn from recorded noise.

The noise is a gate's own file whose two sides were the same commit, with many launches.  A trial draws whole launches
from it: in each every row keeps the value it had beside the others, each launch with its sides as they were or
exchanged (they were the same code).  The rule that decides is the gate's own.  Then the same with one row slower.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench import schema, show
from bench.cli import BadOption, argument, option
from bench.compare import share
from bench.gate.pair import readings
from bench.gate.rule import Launches, Measure, Rule, decide
from bench.op_cases import OPS
from bench.results import Report, write_json


@dataclass(frozen=True)
class SimulateOptions:
    """How often identical commits fail the gate and a planted slowdown is caught, on recorded noise."""

    noise: str = argument("a gate's file of a commit against itself, of at least ten launches")
    trials: int = option(1000, "trials of each")
    slower: str = option("5%", "the planted slowdown, of one row in each trial, every row in turn")
    fail_above: str = option("3%", "a slowdown that is still accepted")
    json: str | None = option(None, "write the two figures to this file")


def run(options: SimulateOptions) -> int:
    """Prints both shares with their 95 % intervals; exit status 1 where either is short of 99 % and 95 %."""
    try:
        noise = recorded(schema.read(options.noise))
    except schema.ResultError as error:
        raise BadOption(str(error)) from error
    rule = Rule(fail_above=share(options.fail_above, "--fail-above"))
    with show.rounds(f"2 x {options.trials} gates of {len(noise)} rows") as on_progress:
        found = rates(noise, rule, share(options.slower, "--slower"), options.trials, on_progress=on_progress)
    figures = {"identical commits pass": (found.passed, options.trials)}
    figures[f"{options.slower} slower in one op is caught"] = found.of_ops()
    for name, (count, trials) in figures.items():
        low, high = interval(count, trials)
        show.console.print(f"{name}: {count} of {trials} ({100 * low:.1f} to {100 * high:.1f} %)")
    seldom = {row: count / trials for row, (count, trials) in found.caught.items() if count < 0.95 * trials}
    for row, rate in seldom.items():
        show.console.print(f"  in {row}: {100 * rate:.0f} %", markup=False)
    if options.json is not None:
        write_json(options.json, {name: {"count": k, "trials": n} for name, (k, n) in figures.items()})
    (passed, of_same), (caught, of_slower) = figures.values()
    return 0 if passed >= 0.99 * of_same and caught >= 0.95 * of_slower else 1


@dataclass(frozen=True)
class Rates:
    """How many gates of identical commits pass; and by row, how often its slowdown was caught, of how many."""

    passed: int
    caught: Mapping[str, tuple[int, int]]

    def of_ops(self) -> tuple[int, int]:
        """Caught, of how many, over the rows that are one op each."""
        ops = [pair for row, pair in self.caught.items() if row.split("/")[0] in OPS]
        return sum(count for count, _ in ops), sum(trials for _, trials in ops)


def recorded(report: Report) -> dict[str, Launches]:
    """Row to the readings of every launch; rows without launches are left out.

    Raises:
        schema.ResultError: a file that is no gate's, or with fewer than ten launches of a row.
    """
    noise = {
        row["subject"]: [readings(launch) for launch in row["launches"]] for row in report.rows if row.get("launches")
    }
    if not noise or min(map(len, noise.values())) < 10:
        raise schema.ResultError("NOISE: a gate's file with at least ten launches of every row (bench gate --launches)")
    return noise


def rates(
    noise: Mapping[str, Launches],
    rule: Rule,
    slower: float,
    trials: int,
    *,
    seed: int = 0,
    on_progress: Callable[[float], object] = lambda share: None,
) -> Rates:
    """`trials` gates of identical commits, and as many with one row slower, every row in turn."""
    random, rows = np.random.default_rng(seed), list(noise)
    passed, caught, planted = 0, Counter[str](), Counter[str]()
    for trial in range(trials):
        same = decide(drawn(noise, random), rows, rule)
        passed += all(outcome.verdict != "slower" for outcome in same.values())
        row = rows[trial % len(rows)]
        slow = decide(drawn(noise, random, {row: math.log1p(slower)}), rows, rule)
        caught[row] += slow[row].verdict == "slower"
        planted[row] += 1
        on_progress((trial + 1) / trials)
    return Rates(passed, {row: (caught[row], count) for row, count in planted.items()})


def drawn(
    noise: Mapping[str, Launches], random: np.random.Generator, planted: Mapping[str, float] | None = None
) -> Measure:
    """A `measure` for the rule that draws launches from the recorded ones."""
    shift = planted or {}

    def measure(rows: Sequence[str], launches: int) -> dict[str, Launches]:
        found: dict[str, Launches] = {row: [] for row in rows}
        for _ in range(launches):
            exchanged, place = random.choice((-1.0, 1.0)), random.random()
            for row in rows:
                launch = noise[row][int(place * len(noise[row]))]
                planted_here = shift.get(row, 0.0)
                found[row].append({name: exchanged * value + planted_here for name, value in launch.items()})
        return found

    return measure


def interval(found: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share (Clopper and Pearson, 1934)."""
    from scipy import stats

    low = float(stats.beta.ppf(0.025, found, trials - found + 1)) if found else 0.0
    high = float(stats.beta.ppf(0.975, found + 1, trials - found)) if found < trials else 1.0
    return low, high
