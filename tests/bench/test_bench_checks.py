"""A wrong implementation is refused, reported and not timed."""

import dataclasses

import pytest
import torch

from bench import checks, ops
from bench.op_cases import OPS, Case
from bench.results import Report

CPU = torch.device("cpu")


def with_presto(presto, op="adaln_modulate", dtype="bf16", backward=False):
    return Case(dataclasses.replace(OPS[op], presto=presto), (1, 5, 64), dtype, backward, CPU)


SHAPES = {"BxNxHxDh": (2, 40, 3, 64), "BxNxHxDhxM": (2, 9, 3, 64, 5), "BxCxT": (2, 7, 64)}


@pytest.mark.parametrize(
    ("op", "backward"), [(op, b) for op in OPS for b in (False, True) if OPS[op].backward or not b]
)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_eager_and_presto_pass(op, dtype, backward):
    case = Case(OPS[op], SHAPES.get(OPS[op].axes, (2, 5, 64)), dtype, backward, CPU)
    for implementation in ops.implementations(case, compiled=False):
        assert ops.check_implementation(case, implementation) <= 1


def scale_without_one(x, scale, shift):
    return (torch.nn.functional.layer_norm(x, x.shape[-1:]) * scale[:, None] + shift[:, None],)


def one_row_is_off(x, scale, shift):
    (h,) = OPS["adaln_modulate"].eager(x, scale, shift)
    h = h.clone()
    h[0, 3, 7] += 0.2
    return (h,)


def nan_in_one_place(x, scale, shift):
    (h,) = OPS["adaln_modulate"].eager(x, scale, shift)
    h = h.clone()
    h[0, 0, 0] = torch.nan
    return (h,)


def other_dtype(x, scale, shift):
    return (OPS["adaln_modulate"].eager(x, scale, shift)[0].float(),)


def too_few(x, scale, shift):
    return ()


@pytest.mark.parametrize("wrong", [scale_without_one, one_row_is_off, nan_in_one_place, other_dtype, too_few])
def test_a_wrong_output_raises(wrong):
    case = with_presto(wrong)
    implementation = next(i for i in ops.implementations(case, compiled=False) if i.name == "presto reference")
    with pytest.raises(checks.WrongResult, match="presto reference"):
        ops.check_implementation(case, implementation)


def test_a_wrong_gradient_raises():
    def detached_shift(x, scale, shift):
        return (OPS["adaln_modulate"].eager(x, scale, shift)[0] + 0.001 * shift[:, None],)

    case = with_presto(detached_shift, dtype="fp32", backward=True)
    implementation = next(i for i in ops.implementations(case, compiled=False) if i.name == "presto reference")
    with pytest.raises(checks.WrongResult, match="d shift"):
        ops.check_implementation(case, implementation)


def test_the_wrong_one_is_reported_and_the_others_are_timed():
    calls = 0

    def wrong(x, scale, shift):
        nonlocal calls
        calls += 1
        return (torch.zeros_like(x),)

    case = with_presto(wrong)
    report = Report({"ceilings": {"copy_gbs": 10.0, "matmul_tflops": {"bf16": 1.0}}})
    options = ops.OpsOptions(compile=False, rounds=5, seconds=0.1)
    rows, interrupted = ops.measure_case(case, options, report, "test")
    refused = {entry["implementation"] for entry in report.refused}
    assert {row["implementation"] for row in rows} == {"eager", "copy"}
    assert refused and all(name.startswith("presto") for name in refused)
    assert "WrongResult" in report.refused[0]["reason"]
    assert calls == len(refused)
    assert not interrupted
