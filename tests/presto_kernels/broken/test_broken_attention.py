"""The tolerance catches wrong CPU kernels of attention."""

import pytest
import torch

import presto_kernels
from presto_kernels.ops.attention import operators
from presto_kernels.testing.attention import Case, judge

pytestmark = pytest.mark.slow


@pytest.fixture
def broken(broken_operators, monkeypatch):
    """Puts the broken operators in the place of the right ones."""
    monkeypatch.setattr(operators, "forward_operator", lambda name: broken_operators.attention.default)
    monkeypatch.setattr(operators, "backward_operator", lambda name: broken_operators.attention_backward.default)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_mistake_is_caught(broken, dtype):
    with presto_kernels.use_backend("cpu"):
        long = judge(Case(queries=40, keys=700, dtype=dtype, layout="plain"), backward=False)
        short = judge(Case(queries=40, keys=60, dtype=dtype, layout="plain"))
    assert {outcome.name for outcome in long if not outcome.ok} == {"out"}  # only behind the first block of keys
    assert {outcome.name for outcome in short if not outcome.ok} == {"dk"}
