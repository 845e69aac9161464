"""`python -m bench gate`: the working tree against another commit, timed in turn, or against a stored result file."""

from __future__ import annotations

import fnmatch
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path

from bench import compare, machine, results, show
from bench.cli import BadOption, option
from bench.gate import subjects
from bench.gate.checkout import ROOT, CheckoutError, baseline
from bench.gate.pair import BASE, NEW, Pair, WorkerError, readings
from bench.gate.rule import Outcome, Rule, change_of, decide, read
from bench.results import Report
from bench.verdicts import CANNOT_COMPARE, FINE, REFUSED, SLOWER, STOPPED, verdict_line, verdict_row, verdict_table


@dataclass(frozen=True)
class GateOptions:
    """Fails where this checkout is slower than a baseline: status 0 fine, 1 slower, 3 not comparable, 4 refused."""

    baseline: str = option("origin/main", "a commit (built and timed beside this checkout), or a result file")
    fail_above: str = option("3%", "a slowdown that is still accepted")
    suite: tuple[str, ...] = option(subjects.SUITES, "what is timed", choices=subjects.SUITES)
    only: tuple[str, ...] = option((), 'rows by pattern, such as "swiglu/*" "dit step/*"')
    dtype: tuple[str, ...] = option(("bf16",), "dtypes", choices=("bf16", "fp32"))
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    threads: int = option(1, "CPU threads of each side; several see the scheduler as much as the code")
    seconds: float = option(1.0, "seconds of a row in a launch")
    launches: int = option(Rule.screen, "launches of the screening; suspects get more, until it is certain enough")
    minutes: float = option(15.0, "when no further launch begins; what is then uncertain is said to be so")
    plant: tuple[str, ...] = option((), 'slow a row down by a share to try the gate itself, such as "swiglu/*=5%"')
    json: str | None = option(None, "write the results to this file; of a baseline file: what was measured for it")


def run(options: GateOptions) -> int:
    """Measures, decides, prints. The exit status says the outcome."""
    missing = [name for name in ("scipy",) if importlib.util.find_spec(name) is None]
    if missing:
        raise BadOption(f"gate needs {', '.join(missing)}: pip install 'presto-kernels[bench]'")
    if Path(options.baseline).is_file():
        return compare.against_file(options.baseline, fail_above=options.fail_above, json=options.json)
    device = machine.pick_device(options.device)
    rows = _chosen(subjects.keys(options.suite, options.dtype, device), options.only, "--only")
    slow = _planted(options.plant, rows)
    if options.launches < 2:
        raise BadOption(f"--launches: at least 2, got {options.launches}")
    rule = Rule(fail_above=compare.share(options.fail_above, "--fail-above"), screen=options.launches)
    try:
        folder, commit = baseline(options.baseline)
    except CheckoutError as error:
        show.console.print(str(error), style="bold red", markup=False)
        return CANNOT_COMPARE
    report = results.start("gate", options, device, options.dtype)
    report.meta["baseline_commit"] = commit
    with show.rounds(f"{len(rows)} rows, this checkout beside {commit[:12]}") as on_progress:
        pair = Pair(
            {BASE: folder, NEW: ROOT},
            device,
            seconds=options.seconds,
            threads=options.threads,
            slow=slow,
            until=time.perf_counter() + 60 * options.minutes,
            on_progress=on_progress,
        )
        return judge(pair, rows, rule, report, options)


def judge(pair: Pair, rows: list[str], rule: Rule, report: Report, options: GateOptions) -> int:
    """Decides, writes and prints; what was measured is kept when it is stopped."""
    outcomes: dict[str, Outcome] = {}
    stopped = False
    try:
        outcomes = decide(pair.measure, rows, rule)
    except KeyboardInterrupt:
        outcomes, stopped = {row: _unfinished(launches) for row, launches in pair.samples.items()}, True
    except WorkerError as error:
        if error.side == BASE:
            show.console.print(f"the baseline does not run: {error}", style="bold red", markup=False)
            return CANNOT_COMPARE
        report.refused.append({"subject": "this checkout", "reason": str(error)})
    for row in rows:
        if row in pair.refused:
            sides = pair.refused[row]
            # What the baseline cannot run is new; what this checkout cannot run is gone, or broken.
            report.rows.append(verdict_row(row, "gone" if NEW in sides else "new", note="; ".join(sides.values())))
            if NEW in sides and BASE not in sides:
                report.refused.append({"subject": row, "reason": sides[NEW]})
        elif row in outcomes:
            report.rows.append(verdict_row(row, outcomes[row].verdict, outcomes[row], pair.samples[row]))
    report.summary = {
        "verdict": _verdict(report, stopped),
        "slower": [row["subject"] for row in report.rows if row["verdict"] == "slower"],
        "launches": sum(map(len, pair.samples.values())),
        "fail_above": rule.fail_above,
        "alpha": rule.alpha,
    }
    report.save(options.json)
    show.console.print(verdict_table(report))
    show.console.print(verdict_line(report))
    show.refused(report.refused)
    if stopped:
        return STOPPED
    if report.refused:
        return REFUSED
    if not outcomes:
        return CANNOT_COMPARE
    return SLOWER if report.summary["slower"] else FINE


def _unfinished(launches: list[dict[str, float]]) -> Outcome:
    """What is known of a row when the gate is stopped: a change, and no verdict."""
    logs = [readings(launch) for launch in launches]
    reading = read(logs)
    return Outcome("inconclusive", reading, change_of([log[reading] for log in logs]), 1.0, False)


def _verdict(report: Report, stopped: bool) -> str:
    if stopped:
        return "stopped"
    if report.refused:
        return "refused"
    return "slower" if any(row["verdict"] == "slower" for row in report.rows) else "fine"


def _chosen(rows: list[str], patterns: tuple[str, ...], flag: str) -> list[str]:
    chosen = [row for row in rows if not patterns or any(fnmatch.fnmatch(row, pattern) for pattern in patterns)]
    if not chosen:
        raise BadOption(f"{flag}: no row matches {' '.join(patterns)}; there are {', '.join(rows)}")
    return chosen


def _planted(plants: tuple[str, ...], rows: list[str]) -> dict[str, float]:
    slow: dict[str, float] = {}
    for plant in plants:
        pattern, _, size = plant.partition("=")
        slow |= dict.fromkeys(_chosen(rows, (pattern,), "--plant"), compare.share(size, "--plant"))
    return slow
