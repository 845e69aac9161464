"""Diffusion transformers for music on presto_kernels: the model, its diffusion, its samplers."""

from presto_models.conditioning import Conditioning
from presto_models.diffusion import (
    EDM,
    ScheduledDenoiser,
    TrainingSigmas,
    classifier_free,
    dpmpp_2s_sigmas,
    dynamic_threshold,
    edm_coefficients,
    edm_loss,
    edm_loss_weight,
    initial_noise,
    karras_sigmas,
    sample_ddim,
    sample_dpmpp_2s,
    sample_heun,
    sample_pingpong,
)
from presto_models.dit import DiT
from presto_models.dit_config import DiTConfig
from presto_models.dit_reference import ReferenceDiT
from presto_models.precomputed import Precomputed, Step
from presto_models.random_weights import randomize_weights

__all__ = [
    "EDM",
    "Conditioning",
    "DiT",
    "DiTConfig",
    "Precomputed",
    "ReferenceDiT",
    "ScheduledDenoiser",
    "Step",
    "TrainingSigmas",
    "classifier_free",
    "dpmpp_2s_sigmas",
    "dynamic_threshold",
    "edm_coefficients",
    "edm_loss",
    "edm_loss_weight",
    "initial_noise",
    "karras_sigmas",
    "randomize_weights",
    "sample_ddim",
    "sample_dpmpp_2s",
    "sample_heun",
    "sample_pingpong",
]
