"""The AOT table joins what the compilers made with what the op must move and do."""

import json

import pytest

from bench import aot, show
from bench.op_cases import OPS
from presto_kernels.testing.aot import AotRecord, AotResult


def record(**changes):
    made = {
        "kernel": "seam_forward",
        "implementation": "triton",
        "arch": 90,
        "dtype": "bf16",
        "variant": "adaln_modulate, D=1024",
        "registers": 40,
        "spills": 0,
        "shared": 8,
        "loads16": 6,
        "loads_other": 0,
        "stores16": 2,
        "stores_other": 1,
        "hmma": 0,
        "hgmma": 0,
        "tcgen05": 0,
    }
    return AotRecord(**made | changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, OPS["adaln_modulate"].forward((2, 1379, 1024), 2)),
        ({"dtype": "fp32"}, OPS["adaln_modulate"].forward((2, 1379, 1024), 4)),
        (
            {"kernel": "seam_backward_rows", "variant": "gated_residual, sigmoid, D=1000"},
            OPS["gated_residual"].backward((2, 1379, 1000), 2),
        ),
        (
            {"implementation": "cuda", "kernel": "seam_forward_rows", "dtype": "bf16/fp32/fp32", "variant": "<2, 2>"},
            OPS["gated_residual_adaln"].forward((2, 1379, 1024), 2),
        ),
        (
            {"implementation": "cuda", "kernel": "seam_backward_columns", "dtype": "any", "variant": ""},
            OPS["gated_residual_adaln"].backward((2, 1379, 1024), 2),
        ),
    ],
)
def test_counts_are_those_of_the_op_the_kernel_computes(changes, expected):
    row = aot.record_row(record(**changes))
    assert (row["bytes"], row["flops"]) == (expected.bytes, expected.flops)


def test_a_kernel_that_finishes_sums_has_no_count_of_its_own():
    assert aot.record_row(record(kernel="seam_backward_sums"))["bytes"] is None


def test_the_table_puts_targets_side_by_side_and_shows_their_worst(monkeypatch, tmp_path, capsys):
    long = {"kernel": "seam_backward_rows", "variant": "gated_residual_adaln, weight and bias, D=1024"}
    records = [record(arch=arch, registers=arch + 40, loads16=arch // 10, **long) for arch in (80, 90, 100)]
    records += [record(arch=90, dtype="fp16"), record(arch=90, dtype="fp16/fp32/fp32", spills=24)]
    monkeypatch.setattr(aot, "compile_all", lambda progress: AotResult(records, ["CUDA kernels: no nvcc"]))
    assert aot.run(str(tmp_path / "aot.json")) == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= show.WIDTH
    assert "…" not in output
    assert "120/130/140" in output
    assert "8+2" in output  # the fewest wide loads of the three
    assert "24" in output  # a kernel that spills is shown, whatever its dtype
    assert "1 more" in output
    assert "skipped: CUDA kernels: no nvcc" in output
    read = json.loads((tmp_path / "aot.json").read_text())
    assert len(read["rows"]) == 5
    assert read["meta"]["skipped"] == ["CUDA kernels: no nvcc"]
