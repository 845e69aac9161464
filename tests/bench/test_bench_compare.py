"""Two result files: a slower op is named, noise is not, and different machines are refused."""

import numpy as np
import pytest

from bench import compare, results
from bench.__main__ import main
from bench.gate.rule import Rule

META = {"device": "a machine", "device_type": "cpu", "threads": 2, "torch": "2.13", "commit": "c"}
OPS = [f"op{i}" for i in range(12)]


def report(seed, *, drift=1.0, slower=None, between=0.01, within=0.02, meta=None, rounds=30, samples=True):
    """Twelve ops by eager, a copy and us; `between` is how far an implementation's time differs from run to run."""
    random = np.random.default_rng(seed)
    rows = []
    for op in OPS:
        shared = random.lognormal(0, 0.05, rounds)  # what a round does to all
        for name, ms in (("eager", 3.0), ("copy", 1.0), ("presto cpu", 1.2)):
            luck = np.exp(random.normal(0, between))
            planted = 1 + (slower or {}).get(op, 0.0) * (name == "presto cpu")
            times = ms * drift * luck * planted * shared * random.lognormal(0, within, rounds)
            row = {"op": op, "implementation": name, "ms_p50": float(np.median(times))}
            rows.append(row | ({"samples_ms": list(times)} if samples else {}))
    made = results.Report(META | (meta or {}), rows, bench="ops")
    for row in rows:
        row["key"] = results.row_key(row)
    return made


def verdicts(old, new, **options):
    found = compare.compare(old, new, Rule(), 0.03, **options)
    return {row["subject"]: row["verdict"] for row in found.rows}


def test_a_slower_op_is_named_though_the_whole_machine_got_slower():
    found = verdicts(report(0), report(1, drift=1.7, slower={"op3": 0.3}))
    assert found.pop("op3/presto cpu") == "slower"
    assert "slower" not in found.values() and len(found) == 11


def test_identical_code_fails_at_most_once_in_a_hundred():
    wrong = sum(
        "slower"
        in verdicts(
            report(2 * s),
            report(2 * s + 1),
        ).values()
        for s in range(150)
    )
    assert wrong <= 3


def test_a_large_slowdown_is_caught_nearly_always():
    caught = sum(
        verdicts(report(2 * s), report(2 * s + 1, slower={"op0": 0.15}))["op0/presto cpu"] == "slower"
        for s in range(60)
    )
    assert caught >= 57


def test_files_whose_baselines_differ_wildly_prove_nothing():
    found = verdicts(report(0, between=0.3), report(1, between=0.3, slower={"op3": 0.3}))
    assert "slower" not in found.values() and "inconclusive" in found.values()


def test_a_file_without_samples_is_compared_by_its_medians():
    found = verdicts(report(0, samples=False), report(1, slower={"op3": 0.3}))
    assert found["op3/presto cpu"] == "slower"


def test_without_baselines_the_option_stands_for_the_spread():
    old, new = report(0), report(1, slower={"op3": 0.5})
    for side in (old, new):
        side.rows = [row for row in side.rows if row["implementation"] == "presto cpu"]
    found = compare.compare(old, new, Rule(), 0.03)
    assert {row["subject"] for row in found.rows if row["verdict"] == "slower"} == {"op3/presto cpu"}
    assert found.summary["baseline_pairs"] == 0
    assert not compare.compare(old, new, Rule(), 0.3).summary["slower"]


def test_rows_that_only_one_file_has_are_named():
    old, new = report(0), report(1)
    old.rows = [row for row in old.rows if row["op"] != "op1"]
    new.rows = [row for row in new.rows if row["op"] != "op2"]
    found = verdicts(old, new)
    assert (found["op1/presto cpu"], found["op2/presto cpu"]) == ("new", "gone")


@pytest.mark.parametrize("change", [{"device": "another"}, {"device_type": "cuda"}, {"threads": 8}])
def test_other_machines_are_refused(tmp_path, capsys, change):
    report(0).save(tmp_path / "old.json")
    report(1, meta=change).save(tmp_path / "new.json")
    assert main(["compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 3
    assert "different machines" in capsys.readouterr().out


def test_the_command(tmp_path, capsys):
    report(0).save(tmp_path / "old.json")
    report(1, meta={"torch": "2.14", "marks": ["throttled"]}).save(tmp_path / "same.json")
    report(3, slower={"op3": 0.4}).save(tmp_path / "slow.json")
    old, same, slow = (str(tmp_path / f"{name}.json") for name in ("old", "same", "slow"))
    assert main(["compare", old, same, "--json", str(tmp_path / "verdict.json")]) == 0
    output = capsys.readouterr().out
    assert "torch differs: 2.13 and 2.14" in output and "new: throttled" in output
    assert "nothing is slower by more than 3 %" in output and max(map(len, output.splitlines())) <= 100
    assert (tmp_path / "verdict.json").exists()
    assert main(["compare", old, slow]) == 1
    assert "SLOWER by more than 3 %: op3/presto cpu" in capsys.readouterr().out
    assert main(["compare", old, slow, "--fail-above", "60%"]) == 0
    assert main(["compare", old, str(tmp_path / "none.json")]) == 3


def test_the_gate_runs_a_files_command_again_and_compares(tmp_path, capsys):
    file, verdict = tmp_path / "ops.json", tmp_path / "verdict.json"
    arguments = "ops --ops edm_denoise --shapes 1x64x8 --device cpu --no-compile --rounds 5 --seconds 0.05 --json"
    assert main([*arguments.split(), str(file)]) == 0
    status = main(["gate", "--baseline", str(file), "--fail-above", "90%", "--json", str(verdict)])
    assert status == 0 and "nothing is slower by more than 90 %" in capsys.readouterr().out
    assert verdict.exists()


def test_an_old_file_that_does_not_say_how_it_was_made_is_refused(tmp_path, capsys):
    report(0).save(tmp_path / "old.json")
    assert main(["gate", "--baseline", str(tmp_path / "old.json")]) == 3
    assert "does not say how it was made" in " ".join(capsys.readouterr().out.split())
