"""`python -m bench compare OLD.json NEW.json`: did anything get slower between two runs?

Two runs differ by themselves: clocks, neighbours, where memory came to lie.  A row of ours is therefore held against
what was timed beside it in the same rounds and no commit of ours changes (eager PyTorch, torch.compile, a plain copy):

    y = median over rounds of log(ours) - mean of log(beside it),   change = exp(y_new - y_old) - 1

and how far y differs between runs of the same code is read off the baselines themselves: between two of them, y cannot
change but by chance.  With v the mean square of those differences over all pairs of baselines, and m of them beside
ours,

    variance of y_new - y_old = v (1 + 1/m) / 2 + (standard errors of the two medians)^2

Student's t with as many degrees of freedom as there are pairs, one-sided, Holm's correction for the number of rows. The
rounds of one run are no independent sample of what another run will give, so no rank test over them is made. Fewer than
five pairs tell nothing: then `--between-runs` stands for the spread. Measuring both commits in turn (`bench gate`) sees
far smaller changes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, schema, show
from bench.cli import BadOption, argument, option
from bench.gate.rule import Change, Outcome, Rule, holm
from bench.names import is_ours
from bench.results import Report, Row
from bench.verdicts import CANNOT_COMPARE, FINE, SLOWER, verdict_line, verdict_row, verdict_table

FEWEST_PAIRS = 5
SAME = ("device", "device_type", "threads")
"""What must agree for two files to be comparable."""


@dataclass(frozen=True)
class CompareOptions:
    """Two result files of one machine: what got slower, by a test that knows how much two runs differ by themselves."""

    old: str = argument("result file of the earlier run")
    new: str = argument("result file of the later run")
    fail_above: str = option("3%", "a slowdown that is still accepted")
    between_runs: str = option("3%", "how far two runs differ by themselves, where the files do not tell")
    json: str | None = option(None, "write the verdicts to this file")


class CannotCompare(ValueError):
    """Files of different machines, or with nothing in common."""


def run(options: CompareOptions) -> int:
    """Prints the verdicts. Exit status 0 fine, 1 slower, 3 cannot be compared."""
    rule = Rule(fail_above=share(options.fail_above, "--fail-above"))
    try:
        old, new = schema.read(options.old), schema.read(options.new)
        report = compare(old, new, rule, share(options.between_runs, "--between-runs"))
    except (CannotCompare, schema.ResultError) as error:
        show.console.print(str(error), style="bold red", markup=False)
        return CANNOT_COMPARE
    report.save(options.json)
    show.console.print(verdict_table(report))
    for mark in report.meta["marks"]:
        show.console.print(mark, style="bold red", markup=False)
    show.console.print(verdict_line(report))
    return SLOWER if report.summary["slower"] else FINE


def against_file(path: str, *, fail_above: str, json: str | None) -> int:
    """Runs the command that made this file once more, here, and compares."""
    from bench.__main__ import COMMANDS

    try:
        old = schema.read(path)
        settings = old.meta.get("settings")
        if settings is None or old.bench not in COMMANDS:
            raise CannotCompare(f"{path}: does not say how it was made; make it anew, or give a commit")
        refuse_other_machines(old.meta, machine.meta(machine.pick_device(old.meta["device_type"])))
    except (CannotCompare, schema.ResultError) as error:
        show.console.print(str(error), style="bold red", markup=False)
        return CANNOT_COMPARE
    options, again = COMMANDS[old.bench]
    known = {field.name for field in dataclasses.fields(options)}
    asked = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k in known}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "new.json"
        again(options(**asked | {"json": str(file)}))
        return run(CompareOptions(path, str(file), fail_above=fail_above, json=json))


def compare(old: Report, new: Report, rule: Rule, between_runs: float) -> Report:
    """The verdicts of every row of ours.

    Raises:
        CannotCompare: see the class.
    """
    refuse_other_machines(old.meta, new.meta)
    sides = [{row["key"]: row for row in report.rows if _timed(row)} for report in (old, new)]
    common = [key for key in sides[1] if key in sides[0]]
    ours = [key for key in common if is_ours(sides[1][key].get("implementation", ""))]
    if not ours:
        raise CannotCompare("the files have no row of ours in common")
    beside = defaultdict(list)
    for key in common:
        if key not in ours:
            beside[_case(key)].append(key)
    spread, pairs = chance(sides, beside.values())
    if pairs < FEWEST_PAIRS:
        spread, pairs = 2 * between_runs**2, 1000
    changes = {key: _change(sides, key, beside[_case(key)], spread, pairs) for key in ours}
    slower, faster = (holm([getattr(change, name) for change in changes.values()]) for name in ("p_slower", "p_faster"))
    report = Report(dict(new.meta), bench="compare")
    report.meta |= {"old_commit": old.meta.get("commit"), "marks": _marks(old.meta, new.meta)}
    for (key, change), p_slower, p_faster in zip(changes.items(), slower, faster, strict=True):
        verdict, p_value = "same", p_slower
        if p_slower < rule.alpha and change.change > rule.fail_above:
            verdict = "slower"
        elif p_faster < rule.alpha and change.change < -rule.fail_above:
            verdict, p_value = "faster", p_faster
        elif change.high > rule.fail_above:
            verdict = "inconclusive"
        report.rows.append(verdict_row(key, verdict, Outcome(verdict, "beside", change, p_value, False)))  # type: ignore[arg-type]
    for verdict, here, there in (("new", 1, 0), ("gone", 0, 1)):
        for key, row in sides[here].items():
            if key not in sides[there] and is_ours(row.get("implementation", "")):
                report.rows.append(verdict_row(key, verdict))
    found = [row["subject"] for row in report.rows if row["verdict"] == "slower"]
    report.summary = {
        "verdict": "slower" if found else "fine",
        "slower": found,
        "fail_above": rule.fail_above,
        "alpha": rule.alpha,
        "baseline_pairs": pairs if pairs != 1000 else 0,
        "between_runs": round(math.sqrt(spread / 2), 5),
    }
    return report


def chance(sides: Sequence[Mapping[str, Row]], groups: Any) -> tuple[float, int]:
    """Mean square of how y between two baselines changed from one file to the other, and of how many pairs."""
    changes = []
    for keys in groups:
        for a, b in itertools.combinations(keys, 2):
            old, new = (_level(side[a], [side[b]])[0] for side in sides)
            changes.append(new - old)
    return (float(np.mean(np.square(changes))) if changes else 0.0), len(changes)


def refuse_other_machines(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for name in SAME:
        if old.get(name) != new.get(name):
            raise CannotCompare(f"the files are of different machines: {name} {old.get(name)!r} and {new.get(name)!r}")


def share(text: str, flag: str) -> float:
    """ "3%" or "0.03" as 0.03."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise BadOption(f"{flag}: a share such as 3% or 0.03, got {text!r}")
    return value


def _change(sides: Any, key: str, beside: Sequence[str], spread: float, pairs: int) -> Change:
    from scipy import stats

    levels = [_level(side[key], [side[other] for other in beside]) for side in sides]
    middle = levels[1][0] - levels[0][0]
    # Without anything beside it the whole drift of the machine is in the row: twice the variance of one of a pair.
    variance = spread * (1 + 1 / len(beside)) / 2 if beside else spread
    error = max(math.sqrt(variance + levels[0][1] ** 2 + levels[1][1] ** 2), 1e-9)
    reach = float(stats.t.ppf(0.975, pairs)) * error
    slower, faster = (float(stats.t.sf(sign * middle / error, pairs)) for sign in (1, -1))
    return Change(math.expm1(middle), math.expm1(middle - reach), math.expm1(middle + reach), slower, faster, 1)


def _level(row: Row, beside: Sequence[Row]) -> tuple[float, float]:
    """y of a row, and its standard error from the rounds (0 where the file has no samples)."""
    rows = [row, *beside]
    samples = [each.get("samples_ms") for each in rows]
    if not all(samples) or len({len(each) for each in samples}) > 1:  # type: ignore[arg-type]
        logs = [math.log(each["ms_p50"]) for each in rows]
        return logs[0] - (float(np.mean(logs[1:])) if beside else 0.0), 0.0
    own, *others = np.log(np.array(samples, dtype=np.float64))
    y = own - (np.mean(others, axis=0) if others else 0.0)
    middle = float(np.median(y))
    # 1.4826 MAD estimates the standard deviation, and a median's error is 1.2533 of a mean's.
    return middle, 1.2533 * 1.4826 * float(np.median(np.abs(y - middle))) / math.sqrt(len(y))


def _timed(row: Row) -> bool:
    return isinstance(row.get("ms_p50"), (int, float)) and row["ms_p50"] > 0


def _case(key: str) -> str:
    """What was measured, whoever did it: the key without the implementation, which is its last word."""
    return key.rpartition("/")[0]


def _marks(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a verdict."""
    marks = [f"{side}: {mark}" for side, meta in (("old", old), ("new", new)) for mark in meta.get("marks", ())]
    for name in ("torch", "triton", "driver", "settings"):
        if old.get(name) != new.get(name) and (name != "settings" or None not in (old.get(name), new.get(name))):
            marks.append(f"{name} differs: {old.get(name)} and {new.get(name)}")
    return marks
