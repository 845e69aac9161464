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
from presto_models.diffusion import added_sigma, ctm_jump, sample_ctm

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


# Consistency trajectory models: of Gaussian data the whole trajectory is known.


def trajectory(x, sigma, sigma_to):
    """g of the exact jump: G = (s/t) x + (1 - s/t) g solved for g."""
    assert type(sigma) is type(sigma_to) is float
    if sigma == sigma_to:
        return Gaussian()(x, sigma)
    return (exact(x, sigma, sigma_to) - sigma_to / sigma * x) / (1 - sigma_to / sigma)


def test_a_jump_follows_the_trajectory():
    x = start(80.0)
    for sigma_to in (79.0, 3.0, 0.1, 0.0):
        torch.testing.assert_close(ctm_jump(trajectory, x, 80.0, sigma_to), exact(x, 80.0, sigma_to))
    assert torch.equal(ctm_jump(trajectory, x, 80.0, 80.0), x)
    assert torch.equal(ctm_jump(trajectory, x, 80.0, 0.0), trajectory(x, 80.0, 0.0))
    # Just below t, g is the denoiser.
    torch.testing.assert_close(trajectory(x, 80.0, 79.999), Gaussian()(x, 80.0), rtol=0, atol=1e-2)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_without_gamma_the_exact_jumps_are_the_ode(steps):
    x = start(80.0)
    y = sample_ctm(trajectory, x, karras_sigmas(steps, spacing="interval"))
    torch.testing.assert_close(y, exact(x, 80.0, 0.0))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gamma_one_is_pingpong_that_jumps_to_zero(steps):
    x, sigmas, targets = start(80.0), karras_sigmas(steps, spacing="interval"), []

    def g(x, sigma, sigma_to):
        targets.append(sigma_to)
        return trajectory(x, sigma, sigma_to)

    y = sample_ctm(g, x, sigmas, gamma=1.0, seed=7)
    assert targets == [0.0] * steps
    assert torch.equal(y, sample_pingpong(lambda x, sigma: trajectory(x, sigma, 0.0), x, sigmas, seed=7))


def test_gamma_between_keeps_the_distribution():
    """Jump to sqrt(1 - gamma^2) s', add gamma s': x at s' has the noisy data's variance, s'^2 + std^2."""
    x = 80.0 * initial_noise((1, 40000, 1), seed=1, dtype=torch.float64)
    y = sample_ctm(trajectory, x, (80.0, 2.0), gamma=0.6, seed=1)
    assert y.std().item() == pytest.approx(math.sqrt(2.0**2 + DATA_STD**2), rel=0.02)
    jumped = ctm_jump(trajectory, x, 80.0, 0.8 * 2.0)
    assert torch.equal(y, renoise(jumped, 0.6 * 2.0, seed=1, offset=1))
    plain = sample_ctm(trajectory, x, (80.0, 2.0))
    assert 0.3 < torch.corrcoef(torch.stack([y.flatten(), plain.flatten()]))[0, 1].item() < 0.95


def test_ctm_needs_a_seed_where_it_adds_noise():
    x, sigmas = start(80.0), karras_sigmas(3, spacing="interval")
    with pytest.raises(ValueError, match="seed must be given"):
        sample_ctm(trajectory, x, sigmas, gamma=0.1)
    assert torch.equal(sample_ctm(trajectory, x, sigmas), sample_ctm(trajectory, x, sigmas, seed=3))
    one = sample_ctm(trajectory, x, (80.0, 0.0), gamma=1.0)  # a single step adds none
    assert torch.equal(one, trajectory(x, 80.0, 0.0))
    for gamma in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="gamma must be from 0 to 1"):
            sample_ctm(trajectory, x, sigmas, gamma=gamma)


# Ping-pong.


def test_a_consistency_model_is_renoised_from_its_lowest_level():
    """f is clean down to sigma_min, so what is added has variance s^2 - sigma_min^2."""
    x = 80.0 * initial_noise((1, 40000, 1), seed=2, dtype=torch.float64)
    sigmas, sigma_min, seen = (80.0, 0.5, 0.0), 0.3, []

    def f(x, sigma):
        seen.append(x)
        return exact(x, sigma, sigma_min)

    y = sample_pingpong(f, x, sigmas, seed=2, sigma_min=sigma_min)
    first = exact(x, 80.0, sigma_min)
    assert (seen[1] - first).var().item() == pytest.approx(0.5**2 - 0.3**2, rel=0.02)
    # and x at s has the noisy data's own variance, so that f carries it on to sigma_min's
    assert seen[1].var().item() == pytest.approx(DATA_STD**2 + 0.5**2, rel=0.02)
    assert y.var().item() == pytest.approx(DATA_STD**2 + 0.3**2, rel=0.02)
    noise = [noise_of(x, 1)]
    made = sample_pingpong(f, x, sigmas, noise=noise, sigma_min=sigma_min)
    torch.testing.assert_close(made, exact(first + 0.4 * noise[0], 0.5, sigma_min))
    assert added_sigma(0.17) == 0.17 and added_sigma(0.5, 0.5) == 0.0
    with pytest.raises(ValueError, match="sigma_min must be from 0 to the noise level"):
        sample_pingpong(f, x, sigmas, seed=2, sigma_min=0.6)


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
