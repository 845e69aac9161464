"""What presto_kernels/ops/triton_common.py gives every family's kernels, in the interpreter."""

import math

import pytest
import torch
import triton
import triton.language as tl

from presto_kernels.ops.triton_common import tanh, tanh_slope


@triton.jit
def _map(x, y, n, SLOPE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n)
    value = tanh_slope(value) if SLOPE else tanh(value)
    tl.store(y + at, value, mask=at < n)


def _apply(x: torch.Tensor, slope: bool = False) -> torch.Tensor:
    y = torch.full_like(x, math.nan)
    _map[(triton.cdiv(x.numel(), 65536),)](x, y, x.numel(), SLOPE=slope, BLOCK=65536)
    return y


def _ulps(y: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    size = right.abs().float().clamp(min=2.0**-126)
    return (y.double() - right).abs() / (torch.nextafter(size, torch.tensor(math.inf)) - size).double()


@pytest.mark.parametrize("limit", [12.0, 1.0, 1e-3, 1e-37])
def test_tanh_is_right_to_two_ulp(limit):
    x = torch.empty(300_007).uniform_(-limit, limit, generator=torch.Generator().manual_seed(0))
    assert _ulps(_apply(x), x.double().tanh()).max() <= 2.0
    assert _ulps(_apply(x, slope=True), x.double().cosh() ** -2).max() <= 4.0


def test_tanh_of_what_is_not_finite_and_what_is_large():
    x = torch.tensor([math.nan, math.inf, -math.inf, 50.0, -50.0, 3e38, -3e38, 0.0, 1e-40])
    torch.testing.assert_close(_apply(x), x.tanh(), equal_nan=True, rtol=1e-6, atol=1e-38)
