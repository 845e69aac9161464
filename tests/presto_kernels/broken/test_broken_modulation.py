"""The tolerance catches a wrong kernel of the AdaLN family."""

from dataclasses import replace

import pytest
import torch

import presto_kernels
from presto_kernels.ops.modulation import operators
from presto_kernels.testing.modulation import Case, judge

pytestmark = pytest.mark.slow


@pytest.fixture
def broken(broken_operators, monkeypatch):
    """Puts the broken operators in the place of the right ones."""
    monkeypatch.setattr(operators, "forward_operator", lambda name: broken_operators.seam.default)
    monkeypatch.setattr(operators, "backward_operator", lambda name: broken_operators.seam_backward.default)


@pytest.mark.parametrize(
    "op, result", [("adaln_modulate", "h"), ("gated_residual", "dbranch"), ("gated_residual_adaln", "h")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_mistake_is_caught(broken, op, result, dtype):
    # bf16 cannot see 1/(2 D) in the variance at D = 1024; at D = 16 it can.
    with presto_kernels.use_backend("cpu"):
        outcomes = judge(Case(op, tokens=9, dim=16, dtype=dtype))
    caught = {outcome.name: outcome for outcome in outcomes if not outcome.ok}
    assert result in caught, [str(outcome) for outcome in outcomes]
    if op == "gated_residual_adaln":  # far beyond what the other two mistakes do to h
        assert caught["h"].error > 0.3


@pytest.mark.parametrize(
    "case, results",
    [
        (Case("adaln_modulate", norm="dyt"), {"h", "dx", "dalpha"}),
        (Case("gated_residual", residual2="BD"), {"x'", "dresidual2"}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mistakes_in_dyt_and_residual2_are_caught(broken, case, results, dtype):
    with presto_kernels.use_backend("cpu"):
        outcomes = judge(replace(case, tokens=9, dim=16, dtype=dtype))
    assert results <= {outcome.name for outcome in outcomes if not outcome.ok}, [str(outcome) for outcome in outcomes]


def test_nothing_else_is_blamed(broken):
    with presto_kernels.use_backend("cpu"):
        outcomes = judge(Case("gated_residual", tokens=9, dim=16))
    assert {outcome.name for outcome in outcomes if not outcome.ok} == {"dbranch"}
