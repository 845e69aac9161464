"""What presto_kernels/ops/triton_common.py gives every family's kernels, in the interpreter."""

import math

import pytest
import torch
import triton
import triton.language as tl

from presto_kernels.ops.triton_common import sin_cos_pi, tanh, tanh_slope


@triton.jit
def _map(x, y, n, SLOPE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n)
    value = tanh_slope(value) if SLOPE else tanh(value)
    tl.store(y + at, value, mask=at < n)


@triton.jit
def _sin_cos_pi_of(x, sine, cosine, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    s, c = sin_cos_pi(tl.load(x + at, mask=at < n))
    tl.store(sine + at, s, mask=at < n)
    tl.store(cosine + at, c, mask=at < n)


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


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e3, 3e7])
def test_sin_cos_pi_errs_by_little_of_one(limit):
    """The interpreter rounds a product that the hardware fuses with its sum, so not to the bit of the CPU's vectors."""
    x = torch.empty(300_007).uniform_(-limit, limit, generator=torch.Generator().manual_seed(0))
    sine, cosine = torch.empty_like(x), torch.empty_like(x)
    _sin_cos_pi_of[(triton.cdiv(x.numel(), 65536),)](x, sine, cosine, x.numel(), BLOCK=65536)
    for y, right in ((sine, torch.sin), (cosine, torch.cos)):
        beyond = x.double() % 2  # exact
        assert (y.double() - right(math.pi * beyond)).abs().max() <= 2.0**-23


def test_sin_cos_pi_of_whole_and_half_numbers():
    x = torch.tensor([0.0, 0.5, 1.0, -0.5, 1.5, 4194303.5, 8388607.0, 16777216.0, 3e38, math.nan, math.inf])
    sine, cosine = torch.empty_like(x), torch.empty_like(x)
    _sin_cos_pi_of[(1,)](x, sine, cosine, x.numel(), BLOCK=16)
    assert torch.equal(sine[:9], torch.tensor([0.0, 1.0, 0.0, -1.0, -1.0, -1.0, 0.0, 0.0, 0.0]))
    assert torch.equal(cosine[:9], torch.tensor([1.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0, 1.0, 1.0]))
    assert sine[9:].isnan().all() and cosine[9:].isnan().all()
