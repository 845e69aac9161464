"""Noise levels for distillation: drawn on the host, a function of a number in (0, 1), stratified over a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import torch

from presto_kernels import LayerSchedule
from presto_models.diffusion import TrainingSigmas
from presto_models.diffusion.edm import karras_sigmas
from presto_models.diffusion_config import DiffusionConfig
from presto_models.training.examples import CropConfig

Sigmas = Callable[[float], float]  # rising quantile in (0, 1) to sigma, rising


def stratified(sample: int, strata: int, random: torch.Generator) -> float:
    """A number in (0, 1), even over a batch: samples 0, 1, ... take turns at the ``strata`` equal parts of it."""
    within = float(torch.rand((), generator=random, dtype=torch.float64))
    return min(max((sample % strata + within) / strata, 1e-9), 1 - 1e-9)


def training_sigmas(p_mean: float, p_std: float, config: DiffusionConfig) -> Sigmas:
    """EDM's training distribution: ln(sigma) normal, clipped to where the model is sampled.

    p_mean is for a sigma_data of 0.5, as :class:`presto_models.TrainingSigmas` has it.
    """
    sigmas = TrainingSigmas(p_mean, p_std).for_sigma_data(config.sigma_data)
    normal = NormalDist(sigmas.p_mean, sigmas.p_std)
    low, high = config.sampling.sigma_min, config.sampling.sigma_max
    return lambda quantile: min(max(math.exp(normal.inv_cdf(quantile)), low), high)


def inference_sigmas(config: DiffusionConfig, *, rho: float = 7.0, levels: int | None = None) -> Sigmas:
    """Where a few-step walk calls the model: the continuous limit of Karras' noise levels (2206.00364, eq. 5).

        sigma(u) = (sigma_max^(1/rho) + (1 - u) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho,   u in (0, 1)

    The role is Presto-S's (2410.05167), the constants are ours.  ``levels``: only the noise levels of a walk of so
    many steps, each with the same weight (Presto-S with discrete sigma).
    """
    low, high = config.sampling.sigma_min, config.sampling.sigma_max
    if levels is not None:
        walk = karras_sigmas(levels, sigma_min=low, sigma_max=high, rho=rho, spacing="interval")[-2::-1]
        return lambda quantile: walk[min(int(quantile * levels), levels - 1)]
    small, large = low ** (1 / rho), high ** (1 / rho)
    return lambda quantile: (small + quantile * (large - small)) ** rho


def check_strata(crops: Sequence[CropConfig], strata: int, accumulate: int) -> None:
    """Whether every kind of batch can be stratified, also in micro-batches; said before anything is computed."""
    if strata < 1:
        raise ValueError(f"strata must be at least 1, got {strata}")
    for number, crop in enumerate(crops):
        if crop.batch % strata:
            raise ValueError(f"crops[{number}].batch must be a multiple of strata = {strata}, got {crop.batch}")
        if crop.batch // accumulate < strata:
            raise ValueError(
                f"crops[{number}].batch = {crop.batch} in {accumulate} micro-batches leaves fewer samples than "
                f"strata = {strata}: the blocks of the largest budget would not run in every one"
            )


def check_cleanest(sigmas: Sigmas, strata: int, schedule: LayerSchedule) -> None:
    """Whether the cleanest stratum always has the schedule's largest budget: this one comes first, and the stratum
    lies below the first edge."""
    if max(schedule.budgets) > schedule.budgets[0]:
        raise ValueError(
            f"budgets must be largest where there is least noise, so that this budget is in every batch; got "
            f"{schedule.budgets}"
        )
    highest = sigmas(min(1 / strata, 1 - 1e-9))
    if schedule.sigmas and highest > schedule.sigmas[0]:
        raise ValueError(
            f"strata = {strata}: its cleanest part reaches up to sigma {highest:.3g}, and the schedule's largest "
            f"budget ends at its first edge {schedule.sigmas[0]:.3g}; raise strata, so that this budget is in every "
            "batch"
        )
