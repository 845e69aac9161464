"""gpu_run.sh: without a GPU it does nothing; with a stand-in interpreter, its stages, limits and last line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
STAGES = ("build", "environment", "tests", "ops", "latency", "profile", "distill", "ditto", "kept")


def gpu_run(*arguments, **environment):
    return subprocess.run(
        ["bash", ROOT / "bench/gpu_run.sh", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_does_nothing(tmp_path):
    done = gpu_run(str(tmp_path / "out"), PYTHON=sys.executable)
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_folder_it_says_how():
    done = gpu_run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage" in done.stderr


def stand_in(folder, failing="nothing"):
    """An interpreter that claims a GPU, fails where told to, and really runs nothing but the summary."""
    python = folder / "python"
    python.write_text(
        f"""#!/bin/sh
case "$*" in
    -c*) exit 0 ;;
    *gpu_summary*) exec {sys.executable} "$@" ;;
    *{failing}*) echo "this one fails"; exit 3 ;;
esac
"""
    )
    python.chmod(0o755)
    return str(python)


def test_a_stage_that_fails_does_not_stop_the_others(tmp_path):
    done = gpu_run(str(tmp_path / "out"), PYTHON=stand_in(tmp_path, failing="tests/gpu"))
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("gpu_run NOT PASSED")
    assert "tests failed (3)" in last
    assert all(f"{name} ok" in last for name in STAGES if name != "tests")
    assert "this one fails" in (tmp_path / "out/log.txt").read_text()
    assert (tmp_path / "out/summary.txt").read_text().strip() == last


def test_when_all_pass_it_says_so(tmp_path):
    done = gpu_run(str(tmp_path / "out"), PYTHON=stand_in(tmp_path))
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("gpu_run PASSED")


def test_without_time_stages_are_skipped_by_name(tmp_path):
    done = gpu_run(str(tmp_path / "out"), PYTHON=stand_in(tmp_path), GPU_RUN_SECONDS="5")
    assert done.returncode == 1
    assert all(f"{name} skipped (no time left)" in done.stdout.splitlines()[-1] for name in STAGES)


def test_the_last_line_quotes_what_the_files_say(tmp_path):
    from bench.gpu_summary import summary_line
    from bench.results import write_json

    (tmp_path / "stages.txt").write_text("build ok 80\nops stopped at 120 s 120\n")
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="10" failures="1" errors="1" skipped="2"/></testsuites>'
    )
    figures = [
        {"presto_over_copy": 1.1, "compile_over_presto": 1.5},
        {"presto_over_copy": 1.2, "compile_over_presto": 1.4},
    ]
    write_json(
        tmp_path / "ops.json",
        {"summary": dict(zip(("a forward graph", "b forward graph", "c backward graph"), [*figures, {}], strict=True))},
    )
    write_json(
        tmp_path / "latency.json",
        {"summary": {"reference_over_presto_graph": 1.3, "one_graph_ms": {"presto": 21.5}, "total_ms": {"mono": 25}}},
    )
    line, passed = summary_line(tmp_path, "300")
    assert not passed
    for part in (
        "NOT PASSED in 300 s",
        "build ok 80 s",
        "ops stopped at 120 s 120 s",
        "6 passed, 2 failed, 2 skipped",
        "at most 1.20x a plain copy",
        "compile/presto at least 1.40",
        "reference_over_presto_graph 1.300",
        "latents in one graph 21.50 ms",
        "prompt to waveform, mono, 25.00 ms",
    ):
        assert part in line
