"""Memory is of a process of its own, counted from what was there before, and does not see its parent's."""

import json
from pathlib import Path

import pytest
import torch

from bench import machine, memory, memory_stages, meter, subprocesses
from bench.__main__ import main
from bench.memory_stages import Case

CPU = torch.device("cpu")
OPTIONS = memory.MemoryOptions(config="tiny", dtype="fp32", batch=(1, 2), length=(0.1, 0.2), device="cpu")


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    monkeypatch.setattr(
        machine, "measure_ceilings", lambda device, dtypes: machine.Ceilings(30.0, dict.fromkeys(dtypes, 0.4))
    )


def test_the_cases():
    cases = memory.listed(OPTIONS, "cpu")
    assert len(cases) == len(set(cases))
    of_stage = {stage: [case for case in cases if case.stage == stage] for stage in memory_stages.NEEDS}
    assert len(of_stage["weights"]) == 2
    assert len(of_stage["generation"]) == 2 * 2 * 2
    assert {case.implementation for case in of_stage["precomputed"]} == {"presto"}
    assert {case.latents for case in of_stage["decode"]} == {92, 184}
    alone = memory.listed(memory.MemoryOptions(compare=False, stages=("step",)), "cuda")
    assert [(case.implementation, case.latents, case.device) for case in alone] == [("presto", 1379, "cuda")]


@pytest.mark.parametrize(
    ("stage", "side"), [(stage, side) for stage in memory_stages.NEEDS for side in memory_stages.sides(stage, True)]
)
def test_every_stage_runs_on_both_sides(stage, side):
    """In this process, so only that it runs and what its weights are."""
    found = memory_stages._measure(Case(stage, side, 2, 5, "tiny", "bf16", 2, "cpu"), 0)
    assert found["resting_bytes"] > 0 and found["peak_bytes"] > 0 and found["reserved_bytes"] is None
    assert found["weights_bytes"] > 0


def test_both_sides_have_the_same_weights():
    def weights(side):
        return memory_stages._measure(Case("step", side, 1, 5, "tiny", "fp32", 1, "cpu"), 0)["weights_bytes"]

    assert weights("presto") == weights("reference")


def allocates(megabytes, kept):
    """Called in a process of its own: the peak and what is held, beyond what was there, in MB."""
    measured = meter.Meter(CPU)
    before = measured.held()
    measured.reset()
    blocks = [bytearray(1_000_000) for _ in range(megabytes)]
    del blocks[kept:]
    meter.give_back()
    return [(measured.peak() - before) / 1e6, (measured.held() - before) / 1e6]


def test_the_peak_is_this_processs_own_and_not_that_of_the_one_that_started_it():
    large = bytearray(300_000_000)
    here = {"PYTHONPATH": str(Path(__file__).parent)}
    peak, held = subprocesses.call(f"{__name__}:allocates", 60, 10, environment=here)
    del large
    assert peak == pytest.approx(60, abs=8)
    assert held == pytest.approx(10, abs=8)


def test_what_cannot_be_measured_is_refused_and_a_row_stands_beside_plain_pytorchs(tmp_path, capsys, monkeypatch):
    def call(function, fields):
        assert function == "bench.memory_stages:measure"
        if fields["batch"] == 2:
            raise subprocesses.ChildError(f"{function}: killed by SIGKILL")
        peak = 3000 if fields["implementation"] == "reference" else 2000
        return {"weights_bytes": 1000, "resting_bytes": 1500, "peak_bytes": peak, "reserved_bytes": None}

    monkeypatch.setattr(subprocesses, "call", call)
    file = tmp_path / "memory.json"
    command = f"memory --config tiny --batch 1 2 --stages generation stereo --device cpu --json {file}"
    assert main(command.split()) == 1
    content = json.loads(file.read_text())
    keys = [row["key"] for row in content["rows"]]
    assert keys == ["generation/1/87/reference", "generation/1/87/presto", "stereo/1/87/presto"]
    assert content["rows"][1]["peak_reference_over_this"] == 1.5
    assert content["summary"]["generation_peak_reference_over_presto"] == 1.5
    assert len(content["refused"]) == 3 and "SIGKILL" in content["refused"][0]["reason"]
    output = capsys.readouterr().out
    assert "1.50x" in output and "SIGKILL" in output and max(map(len, output.splitlines())) <= 100


@pytest.mark.slow
def test_the_command(tmp_path):
    file = tmp_path / "memory.json"
    assert main(f"memory --config tiny --stages weights decode --no-compare --device cpu --json {file}".split()) == 0
    rows = {row["key"]: row for row in json.loads(file.read_text())["rows"]}
    for row in rows.values():
        assert row["peak_bytes"] >= 0.8 * row["weights_bytes"]
        assert row["peak_bytes"] >= row["resting_bytes"]
    weights = rows["weights/1/87/presto"]
    assert weights["resting_bytes"] == pytest.approx(weights["weights_bytes"], rel=0.3)


@pytest.mark.parametrize("arguments", ["--batch 0", "--steps 0", "--length 0"])
def test_a_bad_size_is_said(arguments, capsys):
    with pytest.raises(SystemExit, match="must be positive"):
        main(["memory", "--config", "tiny", *arguments.split()])
