"""Music from text: diffusion transformers on presto_kernels, their diffusion, autoencoders, and the way through."""

from presto_models.autoencoders import Autoencoder, Oobleck, SpectralAutoencoder, load_autoencoder
from presto_models.checkpoint import CheckpointError
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
from presto_models.diffusion.sampling import Sampling
from presto_models.diffusion_config import DiffusionConfig
from presto_models.dit import DiT
from presto_models.dit_config import DiTConfig
from presto_models.dit_reference import ReferenceDiT
from presto_models.engine import Engine, Plan
from presto_models.pipeline import Generated, PrestoPipeline
from presto_models.precomputed import Precomputed, Step
from presto_models.random_weights import randomize_weights
from presto_models.stereo import MonoToStereo, StereoConfig
from presto_models.text import Conditioner, load_text_encoder

__all__ = [
    "Autoencoder",
    "CheckpointError",
    "Conditioner",
    "Conditioning",
    "DiT",
    "DiTConfig",
    "DiffusionConfig",
    "EDM",
    "Engine",
    "Generated",
    "MonoToStereo",
    "Oobleck",
    "Plan",
    "Precomputed",
    "PrestoPipeline",
    "ReferenceDiT",
    "Sampling",
    "ScheduledDenoiser",
    "SpectralAutoencoder",
    "Step",
    "StereoConfig",
    "TrainingSigmas",
    "classifier_free",
    "dpmpp_2s_sigmas",
    "dynamic_threshold",
    "edm_coefficients",
    "edm_loss",
    "edm_loss_weight",
    "initial_noise",
    "karras_sigmas",
    "load_autoencoder",
    "load_text_encoder",
    "randomize_weights",
    "sample_ddim",
    "sample_dpmpp_2s",
    "sample_heun",
    "sample_pingpong",
]
