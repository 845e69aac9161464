"""What presto_kernels/ops/triton_common.py gives every family's kernels, in the interpreter."""

import math

import pytest
import torch
import triton
import triton.language as tl

from presto_kernels.ops.triton_common import tanh


@triton.jit
def _tanh_of(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tanh(tl.load(x + at, mask=at < n)), mask=at < n)


def _apply(x: torch.Tensor) -> torch.Tensor:
    y = torch.full_like(x, math.nan)
    _tanh_of[(triton.cdiv(x.numel(), 65536),)](x, y, x.numel(), BLOCK=65536)
    return y


@pytest.mark.parametrize("limit", [12.0, 1.0, 1e-3, 1e-37])
def test_tanh_is_right_to_two_ulp(limit):
    x = torch.empty(300_007).uniform_(-limit, limit, generator=torch.Generator().manual_seed(0))
    right = x.double().tanh()
    size = right.abs().float().clamp(min=2.0**-126)
    ulp = (torch.nextafter(size, torch.tensor(math.inf)) - size).double()
    assert ((_apply(x).double() - right).abs() / ulp).max() <= 2.0


def test_tanh_of_what_is_not_finite_and_what_is_large():
    x = torch.tensor([math.nan, math.inf, -math.inf, 50.0, -50.0, 3e38, -3e38, 0.0, 1e-40])
    torch.testing.assert_close(_apply(x), x.tanh(), equal_nan=True, rtol=1e-6, atol=1e-38)
