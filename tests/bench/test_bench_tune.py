"""What `tune` writes is what `auto` reads."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import presto_kernels
from bench import tune
from bench.__main__ import main
from bench.op_cases import OPS, Case
from presto_kernels import tuned

X = torch.randn(1, 4, 64)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of its own, and nothing remembered of another before or after."""
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    tuned.forget()
    yield tmp_path
    tuned.forget()


def write(folder, rows, *, name=None, family="none", kind="fp32"):
    this = tuned.device_identity(torch.device("cpu"))
    content = {
        "device": {"type": "cpu", "name": name or this["name"], "family": family},
        "measured": {},
        "rankings": {"gated_residual": {kind: rows}},
    }
    (folder / "device.json").write_text(json.dumps(content))
    tuned.forget()


def test_tune_writes_a_file_that_auto_goes_by(folder, monkeypatch, capsys):
    monkeypatch.setitem(tune.OPS, "gated_residual", OPS["gated_residual"])
    case = Case(OPS["gated_residual"], (1, 4, 64), "fp32", False, torch.device("cpu"))
    rankings: dict = {}
    tune.keep(rankings, case, {"reference": 0.5, "cpu": 1.0})
    tune.keep(rankings, case, {"reference": 0.25, "cpu": 1.0})
    assert rankings == {"gated_residual": {"fp32": [{"size": 256, "ms": {"reference": 0.25, "cpu": 1.0}}]}}
    write(folder, rankings["gated_residual"]["fp32"])
    choice = presto_kernels.explain("gated_residual", X, X, None)
    assert choice.backend == "reference" and "reference 0.25 ms, cpu 1 ms" in choice.reason
    assert choice.measured_on == tuned.processor_name()


def test_the_command_end_to_end(folder, capsys):
    options = "tune --ops renoise --dtype fp32 --device cpu --rounds 3 --seconds 0 --folder"
    assert main([*options.split(), str(folder)]) == 0
    (file,) = folder.glob("*.json")
    rankings = json.loads(file.read_text())["rankings"]
    assert set(rankings) == {"renoise"}
    for row in rankings["renoise"]["fp32"]:
        assert row["size"] > 0 and "reference" in row["ms"] and min(row["ms"].values()) > 0


def test_the_nearest_measured_size_decides(folder):
    write(folder, [{"size": 100, "ms": {"reference": 1, "cpu": 2}}, {"size": 10000, "ms": {"reference": 2, "cpu": 1}}])
    small, large = torch.randn(1, 2, 64), torch.randn(1, 100, 64)
    assert presto_kernels.explain("gated_residual", small, small, None).backend == "reference"
    expected = "cpu" if "cpu" in presto_kernels.available_backends()["gated_residual"] else "reference"
    assert presto_kernels.explain("gated_residual", large, large, None).backend == expected


def test_training_is_filed_by_itself(folder):
    write(folder, [{"size": 256, "ms": {"reference": 1, "cpu": 2}}], kind="fp32 training")
    x = X.clone().requires_grad_()
    assert "measured" in presto_kernels.explain("gated_residual", x, X, None).reason
    assert "measured at" not in presto_kernels.explain("gated_residual", X, X, None).reason


def test_another_device_of_the_family_serves_and_is_named(folder):
    family = tuned.device_identity(torch.device("cpu"))["family"]
    write(folder, [{"size": 256, "ms": {"reference": 1, "cpu": 2}}], name="a cousin", family=family)
    assert presto_kernels.explain("gated_residual", X, X, None).measured_on == "a cousin"
    write(folder, [{"size": 256, "ms": {"reference": 1, "cpu": 2}}], name="a stranger", family="other")
    assert presto_kernels.explain("gated_residual", X, X, None).measured_on is None


def test_a_compiled_graph_goes_by_the_largest_size_and_serves_all(folder):
    write(folder, [{"size": 100, "ms": {"cpu": 1, "reference": 2}}, {"size": 10**6, "ms": {"reference": 1, "cpu": 2}}])
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: presto_kernels.gated_residual(x, x, None), dynamic=True, backend=counter)
    for length in (3, 5, 77, 1001):
        compiled(torch.randn(1, length, 64))
    assert counter.frame_count == 1
    called = [node.target for node in counter.graphs[0].graph.nodes if node.op == "call_function"]
    assert torch.ops.presto_kernels.seam.default not in called


def test_the_prologue_is_filed_beside_the_two_ops():
    """Where there is a GPU; here Triton's interpreter stands in for it, in a process of its own."""
    pytest.importorskip("triton", reason="triton is not installed")
    program = """
import torch
from bench import tune
from bench.op_cases import OPS, Case
rankings = {}
case = Case(OPS["qk_norm_rope"], (1, 5, 2, 16), "fp32", False, torch.device("cpu"))
tune.keep_prologue(rankings, case, tune.TuneOptions(rounds=3, seconds=0.01))
((kind, (row,)),) = rankings["qk_norm_rope_attention"].items()
assert kind == "fp32 dh16" and row["size"] == 2 * 5 * 5 and set(row["ms"]) == {"separate", "fused"}, rankings
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shipped_files_are_well_formed():
    for file in tuned.FOLDER.glob("*.json"):
        name, table = tuned.read(file)
        assert name and table
        for kind, entries in table.items():
            sizes = [size for size, _, _ in entries]
            one_of = "separate" if kind.startswith("qk_norm_rope_attention") else "reference"
            assert sizes == sorted(set(sizes)) and all(one_of in order for _, order, _ in entries)
