"""The diffusion family everything here lives in: EDM's preconditioning, loss and schedules, samplers, guidance."""

from presto_models.diffusion.edm import (
    EDM,
    TrainingSigmas,
    edm_coefficients,
    edm_loss,
    edm_loss_weight,
    karras_sigmas,
)
from presto_models.diffusion.guidance import ScheduledDenoiser, classifier_free
from presto_models.diffusion.noise import initial_noise
from presto_models.diffusion.samplers import (
    added_sigma,
    ctm_jump,
    dpmpp_2s_sigmas,
    dynamic_threshold,
    sample_ctm,
    sample_ddim,
    sample_dpmpp_2s,
    sample_heun,
    sample_pingpong,
)

__all__ = [
    "EDM",
    "ScheduledDenoiser",
    "TrainingSigmas",
    "added_sigma",
    "classifier_free",
    "ctm_jump",
    "dpmpp_2s_sigmas",
    "dynamic_threshold",
    "edm_coefficients",
    "edm_loss",
    "edm_loss_weight",
    "initial_noise",
    "karras_sigmas",
    "sample_ctm",
    "sample_ddim",
    "sample_dpmpp_2s",
    "sample_heun",
    "sample_pingpong",
]
