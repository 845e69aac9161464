"""Samplers against the exact solution for Gaussian data, whose denoiser is known."""

import math
from itertools import pairwise

import pytest
import torch

from presto_kernels import renoise
from presto_models import (
    dpmpp_2s_sigmas,
    dynamic_threshold,
    initial_noise,
    karras_sigmas,
    sample_ddim,
    sample_dpmpp_2s,
    sample_heun,
    sample_pingpong,
)

DATA_MEAN, DATA_STD = 0.4, 0.5
SAMPLERS = {
    "heun": sample_heun,
    "dpmpp_2s": sample_dpmpp_2s,
    "ddim": sample_ddim,
    "pingpong": lambda *args: sample_pingpong(*args, seed=0),
}


class Gaussian:
    """E[x0 | x] for x0 ~ N(mean, std^2), counting and checking how it is called."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, sigma):
        assert type(sigma) is float
        self.calls.append(sigma)
        return (DATA_STD**2 * x + sigma**2 * DATA_MEAN) / (DATA_STD**2 + sigma**2)


def exact(x, start, end):
    """The probability flow ODE's solution: x - mean scales with the noisy data's standard deviation."""
    return DATA_MEAN + (x - DATA_MEAN) * math.sqrt((DATA_STD**2 + end**2) / (DATA_STD**2 + start**2))


def start(sigma, shape=(2, 7, 3)):
    return sigma * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "order"), [("heun", 2), ("dpmpp_2s", 2), ("ddim", 1)])
def test_the_order_of_convergence(name, order):
    x = start(10.0)
    errors = []
    for n in (16, 32, 64):
        sigmas = karras_sigmas(n + 1, sigma_min=0.05, sigma_max=10.0)[:-1]
        errors.append((SAMPLERS[name](Gaussian(), x, sigmas) - exact(x, 10.0, 0.05)).abs().max().item())
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)
    assert errors[-1] < {1: 0.1, 2: 5e-3}[order]


@pytest.mark.parametrize("name", ["heun", "dpmpp_2s", "ddim"])
def test_down_to_zero_they_reach_the_data(name):
    x = start(80.0)
    y = SAMPLERS[name](Gaussian(), x, karras_sigmas(200))
    torch.testing.assert_close(y, exact(x, 80.0, 0.0), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("name", "calls"), [("heun", 2 * 9 - 1), ("dpmpp_2s", 2 * 9 - 1), ("ddim", 9), ("pingpong", 9)]
)
def test_how_often_the_denoiser_is_called(name, calls):
    denoise = Gaussian()
    SAMPLERS[name](denoise, start(80.0), karras_sigmas(9))
    assert len(denoise.calls) == calls


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_the_denoiser(name):
    denoise, x = Gaussian(), start(80.0)
    torch.testing.assert_close(SAMPLERS[name](denoise, x, (80.0, 0.0)), denoise(x, 80.0))


def test_the_levels_dpmpp_calls_at_are_the_levels_it_says():
    denoise, sigmas = Gaussian(), karras_sigmas(6)
    sample_dpmpp_2s(denoise, start(80.0), sigmas)
    assert tuple(denoise.calls) == dpmpp_2s_sigmas(sigmas)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_flow_from_end_to_start(name):
    x = start(80.0, (1, 2, 2)).requires_grad_()
    sigmas = karras_sigmas(4, spacing="interval")
    assert torch.autograd.gradcheck(lambda x: SAMPLERS[name](Gaussian(), x, sigmas), x)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_device_is_asked_nothing(name):
    x = torch.empty(2, 7, 3, device="meta")  # anything that wanted a value from it would raise
    assert SAMPLERS[name](Gaussian(), x, karras_sigmas(4)).is_meta
    assert sample_ddim(Gaussian(), x, karras_sigmas(4), x_max=1.0).is_meta
    assert sample_heun(Gaussian(), x, karras_sigmas(4), s_churn=4, seed=0).is_meta


@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_that_cannot_be_are_refused(name):
    for sigmas in ((1.0,), (1.0, 2.0), (1.0, 1.0), (1.0, -0.1)):
        with pytest.raises(ValueError, match="sigmas must be"):
            SAMPLERS[name](Gaussian(), start(1.0), sigmas)
    with pytest.raises(TypeError, match="host numbers"):
        SAMPLERS[name](Gaussian(), start(1.0), torch.tensor([1.0, 0.0]))
    with pytest.raises(TypeError, match="float32 or float64"):
        SAMPLERS[name](Gaussian(), start(1.0).bfloat16(), (1.0, 0.0))


# Heun's churn.


def test_churn_keeps_the_distribution():
    x = 80.0 * initial_noise((1, 40000, 1), seed=1, dtype=torch.float64)
    y = sample_heun(Gaussian(), x, karras_sigmas(160), s_churn=80.0, seed=1)
    assert y.std().item() == pytest.approx(DATA_STD, rel=0.02)
    assert y.mean().item() == pytest.approx(DATA_MEAN, abs=0.01)
    plain = sample_heun(Gaussian(), x, karras_sigmas(160))
    assert abs(torch.corrcoef(torch.stack([y.flatten(), plain.flatten()]))[0, 1].item()) < 0.5


def test_churn_stays_in_its_range_and_below_its_limit():
    denoise = Gaussian()
    sample_heun(denoise, start(80.0), (80.0, 10.0, 1.0, 0.0), s_churn=100.0, s_tmin=5.0, s_tmax=50.0, seed=0)
    assert denoise.calls == pytest.approx([80.0, 10.0, 10.0 * math.sqrt(2), 1.0, 1.0])


def test_churn_needs_a_seed_and_repeats_with_it():
    x = start(80.0)
    with pytest.raises(ValueError, match="seed must be given"):
        sample_heun(Gaussian(), x, karras_sigmas(4), s_churn=4.0)
    a, b, c = (sample_heun(Gaussian(), x, karras_sigmas(4), s_churn=4.0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


# DDIM's threshold.


def test_dynamic_threshold_is_the_formula():
    x0 = torch.tensor([[1.0, -2.0, 3.0, -4.0, 10.0], [0.1, 0.2, -0.3, 0.4, 0.5]]).unsqueeze(2)
    y = dynamic_threshold(x0, 2.0, quantile=0.75)  # of five values, the fourth
    torch.testing.assert_close(y[0, :, 0], torch.tensor([0.5, -1.0, 1.5, -2.0, 2.0]))
    torch.testing.assert_close(y[1], x0[1])  # already within x_max: nothing is scaled up


def test_ddim_uses_the_thresholded_x0_in_both_places():
    x, sigmas = start(80.0), (80.0, 20.0, 0.0)
    denoise = Gaussian()
    first = dynamic_threshold(denoise(x, 80.0), 0.3, quantile=0.9)
    middle = first + 20.0 / 80.0 * (x - first)
    expected = dynamic_threshold(denoise(middle, 20.0), 0.3, quantile=0.9)
    torch.testing.assert_close(sample_ddim(denoise, x, sigmas, x_max=0.3, quantile=0.9), expected)
    assert expected.abs().max() <= 0.3 + 1e-12


@pytest.mark.parametrize(
    "arguments", [{"x_max": 0.0}, {"x_max": 1.0, "quantile": 0.0}, {"x_max": 1.0, "quantile": 1.1}]
)
def test_thresholds_that_cannot_be_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        dynamic_threshold(torch.zeros(1, 2, 3), **arguments)


# Ping-pong.


def noise_of(x, offset):
    return renoise(torch.zeros_like(x), 1.0, seed=7, offset=offset)


def test_pingpong_denoises_and_adds_the_noise_of_the_next_offset():
    denoise, x = Gaussian(), start(80.0)
    sigmas = (80.0, 20.0, 2.0, 0.0)
    expected = x
    for step, (sigma, following) in enumerate(((80.0, 20.0), (20.0, 2.0), (2.0, None))):
        expected = denoise(expected, sigma)
        if following is not None:
            expected = expected + following * noise_of(x, step + 1)
    assert torch.equal(sample_pingpong(denoise, x, sigmas, seed=7), expected)


def test_pingpong_takes_its_noise_ready_made():
    x, sigmas = start(80.0), karras_sigmas(4, spacing="interval")
    noise = [noise_of(x, i + 1) for i in range(3)]
    y = sample_pingpong(Gaussian(), x, sigmas, noise=noise)
    assert torch.equal(y, sample_pingpong(Gaussian(), x, sigmas, seed=7))
    with pytest.raises(ValueError, match="each step but the last, 3, got 2"):
        sample_pingpong(Gaussian(), x, sigmas, noise=noise[:2])
    with pytest.raises(ValueError, match="exclude each other"):
        sample_pingpong(Gaussian(), x, sigmas, noise=noise, seed=7)
    with pytest.raises(ValueError, match="seed must be given"):
        sample_pingpong(Gaussian(), x, sigmas)


def test_a_seed_for_each_sample_does_not_depend_on_its_place():
    x, sigmas = start(80.0, (3, 7, 3)), karras_sigmas(4, spacing="interval")
    y = sample_pingpong(Gaussian(), x, sigmas, seed=[7, -1, 2**64 - 9])
    assert torch.equal(y, sample_pingpong(Gaussian(), x, sigmas, seed=torch.tensor([7, -1, -9])))
    for i, seed in enumerate([7, -1, 2**64 - 9]):
        assert torch.equal(y[i : i + 1], sample_pingpong(Gaussian(), x[i : i + 1], sigmas, seed=seed))
    assert torch.equal(y.flip(0), sample_pingpong(Gaussian(), x.flip(0), sigmas, seed=[2**64 - 9, -1, 7]))
    with pytest.raises(ValueError, match="one int per sample, 3, got 2"):
        sample_pingpong(Gaussian(), x, sigmas, seed=[1, 2])


def test_fp32_follows_float64_with_the_same_noise():
    """The noise of a float64 run is the fp32 noise, widened."""
    x, sigmas = start(80.0), karras_sigmas(4, spacing="interval")
    wide = sample_pingpong(Gaussian(), x, sigmas, seed=7)
    torch.testing.assert_close(sample_pingpong(Gaussian(), x.float(), sigmas, seed=7).double(), wide, atol=1e-5, rtol=0)
