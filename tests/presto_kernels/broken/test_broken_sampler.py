"""The tolerance catches a wrong kernel of the sampler family."""

import pytest
import torch

import presto_kernels
from presto_kernels.ops.sampler import operators
from presto_kernels.testing.sampler import Case, judge

pytestmark = pytest.mark.slow


@pytest.fixture
def broken(broken_operators, monkeypatch):
    """Puts the broken operators in the place of the right ones."""
    monkeypatch.setattr(operators, "operator", lambda backend, name: getattr(broken_operators, name).default)


@pytest.mark.parametrize(
    "case, wrong",
    [
        # c_skip is that of the gradient of x too, and dF and dsigma have formulas of their own
        (Case("edm_denoise", shape=(2, 9, 16), sigma_min=0.3), {"out", "dx"}),
        (Case("edm_denoise", shape=(2, 9, 16)), set()),
        (Case("renoise", shape=(2, 9, 16)), {"out", "dsigma"}),
    ],
    ids=["c_skip", "no sigma_min, no mistake", "noise"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_mistake_is_caught_and_nothing_else_blamed(broken, case, wrong, dtype):
    with presto_kernels.use_backend("cpu"):
        outcomes = judge(Case(**{**vars(case), "dtype": dtype}))
    assert {outcome.name for outcome in outcomes if not outcome.ok} == wrong, [str(outcome) for outcome in outcomes]
