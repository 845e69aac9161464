"""Noise levels for distillation."""

import pytest
import torch

from presto_kernels import LayerSchedule
from presto_models import DiTConfig, TrainingSigmas, karras_sigmas
from presto_models.diffusion.sampling import Sampling
from presto_models.diffusion_config import DiffusionConfig
from presto_models.distill.draws import check_cleanest, check_strata, inference_sigmas, stratified, training_sigmas
from presto_models.training.examples import CropConfig
from presto_models.training.seeding import generator


def config(sigma_data=0.5, **sampling):
    dit = DiTConfig(num_blocks=2, dim=8, num_heads=1, mlp_dim=8, in_channels=2)
    return DiffusionConfig(dit, (0.0, 0.0), (1.0, 1.0), sigma_data=sigma_data, sampling=Sampling(**sampling))


def even(draw, strata):
    """Every stretch of ``strata`` samples has one in each part, and all together are uniform."""
    drawn = torch.tensor([draw(sample, strata, generator(0, "test", sample)) for sample in range(800)])
    parts = (drawn * strata).long().view(-1, strata).sort(dim=1).values
    assert torch.equal(parts, torch.arange(strata).expand_as(parts))
    assert ((drawn.sort().values - (torch.arange(800) + 0.5) / 800).abs() < 0.03).all()
    assert drawn.min() > 0 and drawn.max() < 1


@pytest.mark.parametrize("strata", [1, 2, 4, 8])
def test_stratified_is_even(strata):
    even(stratified, strata)


@pytest.mark.parametrize(
    "broken",
    [
        lambda sample, strata, random: float(torch.rand((), generator=random)),  # not stratified
        lambda sample, strata, random: (sample % strata + 0.5) / strata,  # no draw within a stratum
    ],
)
def test_uneven_draws_are_caught(broken):
    with pytest.raises(AssertionError):
        even(broken, 4)


def continuous_limit(sigmas, rho):
    """At quantile 1 - i / N it is level i of a walk of N steps, for every N."""
    for steps in (1, 2, 4, 7):
        walk = karras_sigmas(steps, sigma_min=0.003, sigma_max=60.0, rho=rho, spacing="interval")[:-1]
        assert [sigmas(1 - i / steps) for i in range(steps)] == pytest.approx(walk, rel=1e-6)
    assert sigmas(0.0) == pytest.approx(0.003)


@pytest.mark.parametrize("rho", [7.0, 1000.0])
def test_inference_sigmas_are_the_continuous_limit_of_a_walk(rho):
    described = config(sigma_min=0.003, sigma_max=60.0)
    continuous_limit(inference_sigmas(described, rho=rho), rho)
    with pytest.raises(AssertionError):
        continuous_limit(inference_sigmas(described, rho=rho / 2), rho)
    with pytest.raises(AssertionError):
        continuous_limit(lambda quantile: inference_sigmas(described, rho=rho)(1 - quantile), rho)


def test_discrete_sigmas_are_the_levels_of_the_walk():
    sigmas = inference_sigmas(config(), levels=4)
    drawn = [sigmas((i + 0.5) / 400) for i in range(400)]
    walk = karras_sigmas(4, spacing="interval")[:-1]
    assert drawn == sorted(drawn)
    assert {level: drawn.count(level) for level in set(drawn)} == dict.fromkeys(walk, 100)
    assert [round(level, 2) for level in walk] == [80.0, 17.53, 2.52, 0.17]
    assert inference_sigmas(config(), levels=1)(0.3) == 80.0


@pytest.mark.parametrize("sigma_data", [0.5, 1.5])
def test_training_sigmas_are_edms(sigma_data):
    """Quantiles of :class:`TrainingSigmas`' samples, clipped to where the model is sampled."""
    sigmas = training_sigmas(-0.8, 1.3, config(sigma_data, sigma_min=0.02, sigma_max=20.0))
    drawn = TrainingSigmas(-0.8, 1.3).for_sigma_data(sigma_data).sample(200_000, generator=generator(0, "test"))
    for quantile in (0.05, 0.3, 0.5, 0.7, 0.95):
        assert sigmas(quantile) == pytest.approx(float(drawn.quantile(quantile)), rel=0.03)
    assert (sigmas(1e-9), sigmas(1 - 1e-9)) == (0.02, 20.0)


def test_batches_that_cannot_be_stratified_are_refused():
    check_strata((CropConfig(16, 8), CropConfig(32, 4)), 4, 1)
    with pytest.raises(ValueError, match="strata must be at least 1, got 0"):
        check_strata((CropConfig(16, 8),), 0, 1)
    with pytest.raises(ValueError, match=r"crops\[1\].batch must be a multiple of strata = 4, got 6"):
        check_strata((CropConfig(16, 8), CropConfig(32, 6)), 4, 1)
    with pytest.raises(ValueError, match=r"crops\[0\].batch = 8 in 4 micro-batches leaves fewer samples than strata"):
        check_strata((CropConfig(16, 8),), 4, 4)


def test_the_cleanest_part_has_the_largest_budget():
    sigmas = inference_sigmas(config())
    check_cleanest(sigmas, 4, LayerSchedule(8, (0.8,), (8, 4)))
    check_cleanest(sigmas, 1, LayerSchedule.full(8))
    with pytest.raises(ValueError, match=r"strata = 2: its cleanest part reaches up to sigma 2.52"):
        check_cleanest(sigmas, 2, LayerSchedule(8, (0.8,), (8, 4)))
    with pytest.raises(ValueError, match="budgets must be largest where there is least noise"):
        check_cleanest(sigmas, 4, LayerSchedule(8, (0.8,), (4, 8)))
