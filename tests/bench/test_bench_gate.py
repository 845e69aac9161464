"""The gate: its rule, the two processes it times, and the command against real commits."""

import functools
import json
import math
import shutil
import subprocess

import numpy as np
import pytest
import torch

from bench import schema
from bench.__main__ import main
from bench.gate import checkout, pair, rule, run, simulate, subjects

CPU = torch.device("cpu")
HAS_GIT = subprocess.run(["git", "-C", checkout.ROOT, "rev-parse", "HEAD"], capture_output=True).returncode == 0
needs_git = pytest.mark.skipif(not HAS_GIT, reason="no git repository: there are no other commits")


def both(logs, worse=1.0):
    """Launches whose paired reading is `worse` times as far from their mean."""
    middle = np.mean(logs)
    return [{"fastest": float(log), "paired": float(middle + worse * (log - middle))} for log in logs]


def normal_noise(sd, slower=None, seed=0):
    """A `measure` whose launches are normal around nothing, or around a row's planted slowdown."""
    random, asked = np.random.default_rng(seed), []

    def measure(rows, launches):
        asked.append((tuple(rows), launches))
        shift = slower or {}
        return {r: both(random.normal(math.log1p(shift.get(r, 0.0)), sd, launches)) for r in rows}

    return measure, asked


def test_a_change_and_its_interval_are_students():
    change = rule.change_of([0.04, 0.06, 0.05])
    assert change.change == pytest.approx(math.expm1(0.05))
    reach = 4.3027 * 0.01 / math.sqrt(3)  # t of 2 degrees of freedom
    assert (change.low, change.high) == pytest.approx((math.expm1(0.05 - reach), math.expm1(0.05 + reach)), rel=1e-3)
    assert change.p_slower == pytest.approx(0.00657, rel=1e-2) and change.p_slower + change.p_faster == pytest.approx(1)


def test_a_launch_that_is_far_off_does_not_hide_the_others():
    launches = [0.049, 0.05, 0.051, 0.05, 0.052]
    change = rule.change_of([*launches, -1.5])
    assert change.change == pytest.approx(math.expm1(0.05), abs=2e-3) and change.p_slower < 0.001


def test_the_trimmed_test_is_wrong_as_often_as_it_says_on_heavy_tails():
    random = np.random.default_rng(0)
    false = sum(rule.change_of(list(0.03 * random.standard_t(2, 8))).p_slower < 0.05 for _ in range(1500))
    assert 0.02 < false / 1500 < 0.065


def test_a_row_is_read_where_its_launches_agree():
    logs = [0.05, 0.06, 0.055, 0.045]
    assert rule.read(both(logs, worse=3.0)) == "fastest"
    assert rule.read(both(logs, worse=0.3)) == "paired"


def test_one_launch_tells_a_change_and_nothing_about_chance():
    change = rule.change_of([0.5])
    assert (change.low, change.high, change.p_slower) == (-1, math.inf, 1)


def test_holms_correction():
    assert rule.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert rule.holm([0.9, 0.8]) == [1.0, 1.0]
    assert rule.holm([]) == []


def test_a_slow_row_is_confirmed_alone():
    measure, asked = normal_noise(0.004, {"b": 0.08})
    outcomes = rule.decide(measure, ["a", "b", "c"], rule.Rule())
    assert {row: outcome.verdict for row, outcome in outcomes.items()} == {"a": "same", "b": "slower", "c": "same"}
    assert asked[0] == (("a", "b", "c"), 6)
    assert all(rows == ("b",) for rows, _ in asked[1:]) and len(asked) > 1
    assert outcomes["b"].confirmed and not outcomes["a"].confirmed


def test_a_suspect_by_chance_is_cleared_by_fresh_launches():
    calls = iter([both([0.05, 0.05, 0.05, 0.05]), both([0.001, -0.001, 0.002, 0.0, -0.002, 0.001])])
    outcome = rule.decide(lambda rows, launches: {"a": next(calls)}, ["a"], rule.Rule())["a"]
    assert (outcome.verdict, outcome.confirmed) == ("same", True)


def test_what_stays_uncertain_is_said_to_be_so_and_the_looking_ends():
    measure, asked = normal_noise(0.3, {"a": 0.1}, seed=3)
    outcome = rule.decide(measure, ["a"], rule.Rule())["a"]
    assert outcome.verdict == "inconclusive"
    assert sum(launches for _, launches in asked[1:]) == rule.Rule().most


def test_without_time_to_confirm_a_suspect_stays_one():
    calls = iter([{"a": both([0.1, 0.1, 0.11, 0.1])}, {}])
    assert rule.decide(lambda rows, launches: next(calls), ["a"], rule.Rule())["a"].verdict == "inconclusive"


def test_a_row_that_got_faster_is_named():
    measure, _ = normal_noise(0.002, {"a": -0.2})
    assert rule.decide(measure, ["a", "b"], rule.Rule())["a"].verdict == "faster"


def test_within_what_is_accepted_is_no_failure():
    measure, _ = normal_noise(0.001, {"a": 0.02})
    assert rule.decide(measure, ["a"], rule.Rule(fail_above=0.03))["a"].verdict == "same"
    assert rule.decide(measure, ["a"], rule.Rule(fail_above=0.01))["a"].verdict == "slower"


NOISE = sorted((checkout.ROOT / "bench" / "noise").glob("*.json"))


def test_there_is_recorded_noise():
    assert NOISE


@pytest.mark.parametrize("path", NOISE, ids=lambda path: path.stem)
def test_on_recorded_noise_the_rule_is_as_good_as_it_says(path):
    noise = simulate.recorded(schema.read(path))
    found = simulate.rates(noise, rule.Rule(), 0.05, trials=250)
    caught, planted = found.of_ops()
    assert found.passed >= 0.99 * 250
    assert caught >= 0.95 * planted > 150


def test_the_simulation_would_show_a_rule_that_is_no_good():
    random = np.random.default_rng(0)
    noise = {row: both(random.normal(0, 0.03, 40)) for row in "abcdefgh"}
    hasty = rule.Rule(fail_above=0.0, alpha=0.5, precision=1.0, screen=2, confirm=2, most=2)
    assert simulate.rates(noise, hasty, 0.05, trials=60).passed < 54


def test_too_little_noise_is_refused(tmp_path, capsys):
    (tmp_path / "n.json").write_text(json.dumps({"meta": {}, "rows": [], "summary": {}, "refused": []}))
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", str(tmp_path / "n.json")])
    assert stopped.value.code == 2 and "at least ten launches" in capsys.readouterr().err


def test_the_interval_of_a_share():
    assert simulate.interval(100, 100) == pytest.approx((0.9638, 1.0), abs=1e-3)
    assert simulate.interval(0, 10)[0] == 0


@pytest.mark.parametrize("key", subjects.keys(subjects.SUITES, ("bf16",), CPU))
def test_every_row_is_found_and_runs(key):
    if not key.startswith(("attention", "snake", "decode", "dit", "generate")):
        subject = subjects.find(key, CPU)
        assert len(subjects.timer(subject.make(0), CPU, subject.grad)(2)) == 2
    assert callable(subjects.find(key, CPU).make)


def test_a_planted_slowdown_takes_that_share_longer():
    now = 0.0

    def clock():
        nonlocal now
        now += 1e-6
        return now

    def call():
        nonlocal now
        now += 1e-3

    subjects.slowed(call, 0.05, clock=clock)()
    assert now == pytest.approx(1.05e-3, abs=1e-5)
    assert len(subjects.timer(call, CPU, False, 0.05)(3)) == 3


ROW = "edm_denoise/1x1379x64/bf16/forward"


def pair_of(new, **options):
    return pair.Pair({pair.BASE: checkout.ROOT, pair.NEW: new}, CPU, seconds=0.05, **options)


def test_two_processes_take_turns_and_one_that_is_slowed_is_seen():
    pair_ = pair_of(checkout.ROOT, slow={ROW: 1.0})
    (launch,) = pair_.measure([ROW], 1)[ROW]
    assert all(launch[reading] > math.log(1.2) for reading in rule.READINGS)
    assert pair_.samples[ROW][0]["calls"] >= 3


def test_the_packages_under_test_are_those_of_the_folder(tmp_path):
    """A checkout whose op is wrong is refused by name; the other side is the good one."""
    for name in checkout.PACKAGES:
        shutil.copytree(checkout.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    api = tmp_path / "presto_kernels" / "__init__.py"
    api.write_text(
        api.read_text() + "\n_right = edm_denoise\ndef edm_denoise(*a, **k):\n    return 2 * _right(*a, **k)\n"
    )
    pair_ = pair_of(tmp_path)
    assert pair_.measure([ROW], 2) == {}
    assert set(pair_.refused[ROW]) == {pair.NEW}
    assert "WrongResult" in pair_.refused[ROW][pair.NEW]


def test_a_side_that_cannot_even_start_says_what_it_said_last(tmp_path):
    for name in checkout.PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('nothing here')")
    with pytest.raises(pair.WorkerError, match=r"status 1: ImportError: nothing here") as died:
        pair_of(tmp_path).measure([ROW], 1)
    assert died.value.side == pair.NEW


@pytest.mark.parametrize(("side", "status"), [(pair.BASE, 3), (pair.NEW, 4)])
def test_a_side_that_dies_is_a_failure_only_if_it_is_this_one(side, status, tmp_path, monkeypatch, capsys):
    def dies(self, rows, launches):
        raise pair.WorkerError(side, "the process ended with status -11")

    monkeypatch.setattr(pair.Pair, "measure", dies)
    monkeypatch.setattr(run, "baseline", lambda ref: (checkout.ROOT, "0" * 40))
    file = tmp_path / "gate.json"
    assert main(["gate", "--baseline", "HEAD", "--only", ROW, "--json", str(file)]) == status
    assert "status -11" in capsys.readouterr().out
    assert file.exists() == (side == pair.NEW)


def test_after_the_time_is_over_no_launch_begins():
    assert pair_of(checkout.ROOT, until=0.0).measure([ROW], 3) == {}


@needs_git
@pytest.mark.slow
@pytest.mark.parametrize(("plant", "status"), [((), 0), (("edm_denoise/*=90%",), 1)])
def test_the_command(tmp_path, capsys, monkeypatch, plant, status):
    """HEAD against the working tree, and the same with an op that is far slower."""
    monkeypatch.setattr(checkout, "FOLDER", tmp_path / "commits")
    monkeypatch.setattr(run, "Rule", functools.partial(rule.Rule, confirm=6, most=6))  # what is planted is large
    file = tmp_path / "gate.json"
    arguments = ["gate", "--baseline", "HEAD", "--only", ROW, "--launches", "2", "--seconds", "0.1"]
    arguments += ["--fail-above", "25%", *(["--plant", *plant] if plant else [])]
    assert main([*arguments, "--json", str(file)]) == status
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 100
    report = schema.read(file)
    assert (report.bench, report.summary["verdict"]) == ("gate", "slower" if status else "fine")
    assert report.rows[0]["subject"] == ROW and len(report.rows[0]["launches"]) == (8 if status else 2)
    assert ("SLOWER by more than 25 %" in output) == bool(status)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--only nothing/*", "no row matches"),
        ("--fail-above much", "a share such as 3%"),
        ("--plant swiglu/*=x", "--plant: a share"),
        ("--launches 1", "at least 2"),
    ],
)
def test_a_bad_option_says_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["gate", "--baseline", "HEAD", *arguments.split()])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_commit_that_is_not_there_cannot_be_compared(capsys):
    assert main(["gate", "--baseline", "no-such-branch"]) == 3
    assert "no commit 'no-such-branch'" in capsys.readouterr().out


def test_stopping_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    def stops(self, rows, launches):
        self.samples[rows[0]] = [{"base": 1.0, "new": 1.2, "paired": 0.18, "calls": 9}]
        raise KeyboardInterrupt

    monkeypatch.setattr(pair.Pair, "measure", stops)
    monkeypatch.setattr(run, "baseline", lambda ref: (checkout.ROOT, "0" * 40))
    file = tmp_path / "gate.json"
    assert main(["gate", "--baseline", "HEAD", "--only", ROW, "--json", str(file)]) == 130
    report = schema.read(file)
    assert report.summary["verdict"] == "stopped"
    assert (report.rows[0]["verdict"], report.rows[0]["change"]) == ("inconclusive", pytest.approx(0.2))
