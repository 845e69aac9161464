"""The tolerance catches a wrong kernel of the activations."""

import pytest
import torch

import presto_kernels
from presto_kernels.ops.activation import operators
from presto_kernels.testing.activation import Case, judge

pytestmark = pytest.mark.slow


@pytest.fixture
def broken(broken_operators, monkeypatch):
    """Puts the broken operators in the place of the right ones."""
    monkeypatch.setattr(operators, "forward_operator", lambda op, name: getattr(broken_operators, op).default)
    monkeypatch.setattr(
        operators, "backward_operator", lambda op, name: getattr(broken_operators, f"{op}_backward").default
    )


@pytest.mark.parametrize("op, results", [("swiglu", {"dx"}), ("geglu", {"y"}), ("singlu", {"dx"}), ("snake", {"y"})])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_mistake_is_caught_and_nothing_else_is_blamed(broken, op, results, dtype):
    with presto_kernels.use_backend("cpu"):
        outcomes = judge(Case(op, rows=9, dtype=dtype))
    assert {outcome.name for outcome in outcomes if not outcome.ok} == results, [str(outcome) for outcome in outcomes]
