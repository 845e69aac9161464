"""The tolerance catches a wrong kernel of ``qk_norm_rope``."""

import pytest
import torch

import presto_kernels
from presto_kernels.ops.rotary import operators
from presto_kernels.testing.rotary import Case, judge

pytestmark = pytest.mark.slow


@pytest.fixture
def broken(broken_operators, monkeypatch):
    """Puts the broken operators in the place of the right ones."""
    monkeypatch.setattr(operators, "forward_operator", lambda name: broken_operators.qk_norm_rope.default)
    monkeypatch.setattr(operators, "backward_operator", lambda name: broken_operators.qk_norm_rope_backward.default)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_mistake_is_caught(broken, dtype):
    with presto_kernels.use_backend("cpu"):
        turned = {outcome.name for outcome in judge(Case(dtype=dtype)) if not outcome.ok}
        normed = {outcome.name for outcome in judge(Case(dtype=dtype, interleaved=True)) if not outcome.ok}
    assert {"q'", "k'", "dq", "dk"} <= turned
    assert normed == {"dq", "dk"}  # the forward's mistake is in the other kind of rotary


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_alpha_is_caught(broken, dtype):
    with presto_kernels.use_backend("cpu"):
        outcomes = judge(Case(dtype=dtype, norm="dyt", interleaved=True))
    assert {outcome.name for outcome in outcomes if not outcome.ok} == {"dq_alpha", "dk_alpha"}


def test_nothing_else_is_blamed(broken):
    with presto_kernels.use_backend("cpu"):
        outcomes = judge(Case(norm=None, weight=False, interleaved=True))
    assert all(outcome.ok for outcome in outcomes)
