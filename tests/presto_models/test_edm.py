"""EDM's preconditioning, loss and noise levels."""

import math
from itertools import pairwise

import pytest
import torch
from small_models import make_dit, make_inputs, small_config
from torch import nn

from presto_models import EDM, DiT, TrainingSigmas, edm_coefficients, edm_loss, edm_loss_weight, karras_sigmas

CONFIG = small_config()


@pytest.mark.parametrize("sigma", [0.002, 0.5, 7.0, 80.0])
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_the_coefficients_do_what_edm_asks_of_them(sigma, sigma_data):
    c_skip, c_out, c_in = edm_coefficients(sigma, sigma_data)
    # The network's input and its training target have unit variance (EDM, appendix B.6).
    assert math.isclose(c_in**2 * (sigma**2 + sigma_data**2), 1)
    assert math.isclose(((1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * sigma**2) / c_out**2, 1)
    assert math.isclose(edm_loss_weight(sigma, sigma_data) * c_out**2, 1)
    tensors = edm_coefficients(torch.tensor([sigma], dtype=torch.float64), sigma_data)
    assert [t.item() for t in tensors] == pytest.approx([c_skip, c_out, c_in])


def test_without_noise_the_denoiser_is_the_identity():
    edm, inputs = EDM(make_dit(CONFIG)), make_inputs(CONFIG)
    for sigma, distance in ((0.0, 0.0), (1e-6, 1e-5)):
        for level in (sigma, torch.full_like(inputs.sigma, sigma)):
            assert (edm(inputs.x, level, inputs.conditioning) - inputs.x).abs().max() <= distance


def test_the_denoiser_is_the_formula():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    sigma_data, sigma = 0.7, inputs.sigma[:, None, None]
    total = sigma**2 + sigma_data**2
    output = dit(inputs.x / total.sqrt(), inputs.sigma, inputs.conditioning)
    expected = sigma_data**2 / total * inputs.x + sigma * sigma_data / total.sqrt() * output
    torch.testing.assert_close(EDM(dit, sigma_data)(*inputs.args), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("sigma_data", "lowest"), [(0.5, 0.002), (0.7, 0.1)])
def test_a_consistency_model_is_the_identity_at_its_lowest_level(dtype, sigma_data, lowest):
    edm = EDM(make_dit(CONFIG, dtype), sigma_data, boundary_sigma=lowest)
    inputs = make_inputs(CONFIG).to(dtype)
    for level in (lowest, torch.full_like(inputs.sigma, lowest)):
        assert torch.equal(edm(inputs.x, level, inputs.conditioning), inputs.x)
    assert not torch.equal(edm(inputs.x, 1.01 * lowest, inputs.conditioning), inputs.x)


def test_a_consistency_model_is_the_formula():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    sigma_data, lowest, sigma = 0.7, 0.01, inputs.sigma[:, None, None]
    root = (sigma**2 + sigma_data**2).sqrt()
    output = dit(inputs.x / root, inputs.sigma, inputs.conditioning)
    skip = sigma_data**2 / ((sigma - lowest) ** 2 + sigma_data**2)
    expected = skip * inputs.x + sigma_data * (sigma - lowest) / root * output
    made = EDM(dit, sigma_data, boundary_sigma=lowest)(*inputs.args)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
    for boundary in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="boundary_sigma must be"):
            EDM(dit, boundary_sigma=boundary)


def test_a_host_number_is_that_level_for_every_sample():
    config = small_config(takes_sigma_to=True, takes_guidance=True)
    edm, inputs = EDM(make_dit(config)), make_inputs(config)
    same = torch.full_like(inputs.sigma, 3.0)
    y = edm(inputs.x, 3.0, inputs.conditioning, sigma_to=1.5, guidance=4.0)
    expected = edm(inputs.x, same, inputs.conditioning, sigma_to=same / 2, guidance=same + 1)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_only_the_network_is_in_half_precision():
    inputs = make_inputs(CONFIG).to(torch.float32)
    exact = EDM(make_dit(CONFIG, torch.float32))(*inputs.args)
    half = EDM(DiT(CONFIG).to(torch.bfloat16))
    half.dit.load_state_dict(make_dit(CONFIG, torch.bfloat16).state_dict())
    for x in (inputs.x, inputs.x.bfloat16()):
        y = half(x, inputs.sigma, inputs.conditioning)
        assert y.dtype == torch.float32
        c_out = edm_coefficients(inputs.sigma)[1][:, None, None]
        assert ((y - exact) / c_out).abs().max() < 0.1
    # c_skip x is not rounded: at a low level D is x to far below bf16's 2^-9.
    low = half(inputs.x, 1e-5, inputs.conditioning)
    assert (low - inputs.x).abs().max() < 1e-4
    assert edm_type(inputs.x.double(), half, inputs) == torch.float64


def edm_type(x, edm, inputs):
    return edm(x, inputs.sigma, inputs.conditioning).dtype


def test_blocks_budgets_and_precomputed_reach_the_network():
    edm, inputs = EDM(make_dit(CONFIG)), make_inputs(CONFIG)
    step = edm.dit.precompute(inputs.conditioning, (2.0,), (3,)).step(0)
    some = edm(inputs.x, 2.0, inputs.conditioning, blocks=(0, 1, 5))
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(edm(inputs.x, 2.0, inputs.conditioning, budgets=(3, 3, 3)), some, **close)
    torch.testing.assert_close(edm(inputs.x, 2.0, inputs.conditioning, precomputed=step), some, **close)
    assert not torch.allclose(edm(inputs.x, 2.0, inputs.conditioning), some)
    with pytest.raises(ValueError, match=r"sigma 2\.0, got sigma 2\.5"):
        edm(inputs.x, 2.5, inputs.conditioning, precomputed=step)


class Nothing(nn.Module):
    """A network that returns zeros: D = c_skip x."""

    def forward(self, x, sigma, conditioning):
        return torch.zeros_like(x)


def test_the_loss_of_a_network_that_says_nothing():
    """D = c_skip (x0 + s eps); with x0 = a and eps = b everywhere, D - x0 = (c_skip - 1) a + c_skip s b."""
    a, b, sigma = 0.3, -1.5, torch.tensor([0.01, 0.5, 30.0], dtype=torch.float64)
    x0 = torch.full((3, 11, 5), a, dtype=torch.float64)
    loss = edm_loss(EDM(Nothing()), x0, make_inputs(CONFIG).conditioning, sigma=sigma, noise=torch.full_like(x0, b))
    for s, value in zip(sigma.tolist(), loss.tolist(), strict=True):
        skip, weight = 0.25 / (s * s + 0.25), (s * s + 0.25) / (s * 0.5) ** 2
        assert value == pytest.approx(weight * ((skip - 1) * a + skip * s * b) ** 2)


def test_the_loss_starts_at_one_for_every_noise_level():
    """On data of standard deviation sigma_data a fresh network has expected loss 1, wherever sigma is (EDM, B.6)."""
    generator = torch.Generator().manual_seed(0)
    x0 = 0.5 * torch.randn(4, 1500, 5, generator=generator)
    noise = torch.randn(4, 1500, 5, generator=generator)
    sigma = torch.tensor([0.01, 0.3, 3.0, 50.0])
    inputs = make_inputs(CONFIG, batch=4).to(torch.float32)
    with torch.no_grad():
        loss = edm_loss(EDM(DiT(CONFIG)), x0, inputs.conditioning, sigma=sigma, noise=noise)
    assert loss.tolist() == pytest.approx([1.0] * 4, rel=0.05)


def test_a_training_batch_of_mixed_budgets_trains():
    edm, inputs = EDM(make_dit(CONFIG)), make_inputs(CONFIG)
    noise = torch.randn_like(inputs.x)
    loss = edm_loss(edm, inputs.x, inputs.conditioning, sigma=inputs.sigma, noise=noise, budgets=(6, 4, 2))
    loss.mean().backward()
    assert loss.shape == (3,)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in edm.parameters())


def test_training_levels_are_log_normal():
    levels = TrainingSigmas().sample(20000, generator=torch.Generator().manual_seed(0))
    assert levels.device.type == "cpu" and levels.dtype == torch.float32
    logs = levels.double().log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert logs.std().item() == pytest.approx(1.2, abs=0.03)


def test_training_levels_are_clipped():
    levels = TrainingSigmas(p_std=30.0).sample(200, generator=torch.Generator().manual_seed(0))
    assert levels.min().item() == pytest.approx(0.002) and levels.max().item() == pytest.approx(80.0)


def test_training_levels_move_with_the_data():
    draw = [
        d.sample(50, generator=torch.Generator().manual_seed(0))
        for d in (TrainingSigmas(), TrainingSigmas().for_sigma_data(1.5))
    ]
    torch.testing.assert_close(draw[1], 3 * draw[0])
    assert TrainingSigmas().for_sigma_data(0.5) == TrainingSigmas()


def test_karras_levels_for_few_steps():
    assert karras_sigmas(4, spacing="interval") == pytest.approx((80, 17.5, 2.52, 0.17, 0), rel=0.02)


def test_karras_levels_for_solvers():
    levels = karras_sigmas(18)
    assert len(levels) == 19 and levels[0] == 80 and levels[-2] == 0.002 and levels[-1] == 0
    roots = [s ** (1 / 7) for s in levels[:-1]]
    steps = [b - a for a, b in pairwise(roots)]
    assert steps == pytest.approx([steps[0]] * 17)


@pytest.mark.parametrize("spacing", ["endpoint", "interval"])
def test_karras_levels_fall_and_one_step_is_one_jump(spacing):
    assert karras_sigmas(1, spacing=spacing) == (80.0, 0.0)
    for n in (2, 3, 40):
        levels = karras_sigmas(n, spacing=spacing)
        assert len(levels) == n + 1 and all(a > b for a, b in pairwise(levels))


@pytest.mark.parametrize(
    "arguments",
    [{"n": 0}, {"n": 2.5}, {"sigma_min": 0.0}, {"sigma_min": 90.0}, {"rho": 0.0}, {"spacing": "linear"}],
)
def test_karras_refuses_what_it_cannot_do(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        karras_sigmas(**({"n": 4} | arguments))


@pytest.mark.parametrize(
    "make",
    [
        lambda: EDM(Nothing(), 0.0),
        lambda: TrainingSigmas(p_std=0.0),
        lambda: TrainingSigmas(sigma_min=0.0),
        lambda: TrainingSigmas().for_sigma_data(-1.0),
    ],
)
def test_settings_that_cannot_be_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()
