"""The pytest-benchmark suites as people call them: stored runs, and a comparison that fails where it got slower."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

ROOT = Path(__file__).parents[2]
ONE = "edm_denoise-1x1379x64-fp32-forward"


def pytest_of(*arguments, **environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    keep = {**alone, "OMP_NUM_THREADS": "1", **environment}  # pytest-benchmark writes nothing in a worker of xdist
    return subprocess.run(command, cwd=ROOT, env=keep, capture_output=True, text=True, timeout=300, check=False)


def suites(store, *arguments):
    short = ("--benchmark-max-time=0.01", "--benchmark-warmup=off")
    return pytest_of("bench/suites", "--device", "cpu", "-k", ONE, f"--benchmark-storage={store}", *short, *arguments)


@pytest.mark.slow
def test_runs_are_stored_and_compared(tmp_path):
    done = suites(tmp_path, "--benchmark-autosave", f"--benchmark-json={tmp_path / 'out.json'}")
    assert done.returncode == 0, done.stdout + done.stderr
    (figure,) = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    assert figure["name"] == f"test_op[{ONE}]"
    info = figure["extra_info"]
    assert info.keys() == {"device", "commit", "bytes", "flops"}
    assert info["bytes"] == 12 * 1379 * 64 + 4
    (stored,) = tmp_path.rglob("0001_*.json")
    content = json.loads(stored.read_text())
    assert content["machine_info"]["presto"]["device"] == info["device"]
    median = content["benchmarks"][0]["stats"]["median"]
    for factor, status in ((1000, 0), (1 / 1000, 1)):
        content["benchmarks"][0]["stats"]["median"] = factor * median
        stored.write_text(json.dumps(content))
        compared = ("--benchmark-compare=0001", "--benchmark-compare-fail=median:5%")
        done = suites(tmp_path, "--benchmark-autosave", *compared)
        assert done.returncode == status, done.stdout + done.stderr
        assert ("Performance has regressed" in done.stdout + done.stderr) is bool(status)
    assert len(list(tmp_path.rglob("000?_*.json"))) == 3


def test_the_ids_are_stable_and_every_op_is_there():
    from bench.op_cases import OPS

    done = pytest_of("bench/suites", "--collect-only")
    assert done.returncode == 0, done.stdout + done.stderr
    ids = [line.split("::")[1] for line in done.stdout.splitlines() if "::" in line]
    expected = [
        f"test_op[{name}-{op.shapes[0]}-{dtype}-{direction}]"
        for name, op in OPS.items()
        for dtype in ("bf16", "fp32")
        for direction in ("forward", "backward")
        if op.backward or direction == "forward"
    ]
    assert [name for name in ids if name.startswith("test_op")] == expected
    assert {"test_dit_step[tiny-bf16]", "test_sampler_step[tiny-fp32]", "test_decode[tiny-fp32]"} <= set(ids)


def test_they_say_what_is_missing():
    done = pytest_of("bench/suites", "-p", "no:benchmark", "--collect-only")
    assert done.returncode == 4
    assert "presto-kernels[bench]" in done.stderr
