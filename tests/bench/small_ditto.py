"""Searches that make a step in milliseconds: two small models of random weights."""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "presto_models"))
from small_models import small_config
from small_pipeline import small_pipeline

from bench.ditto_tasks import DITTO, Sizes
from presto_models.autoencoders.spectral import SpectralAutoencoder, SpectralAutoencoderConfig
from presto_models.diffusion.sampling import Sampling
from presto_models.pipeline import PrestoPipeline

SIZES = Sizes(
    checkpoint="small",
    student="small student",
    config=None,
    audio=0.5,
    batch=2,
    sampling_steps=3,
    guidance=3.0,
    surrogate_steps=1,
    student_sampler=None,
    student_steps=None,
    dtype="fp32",
    device="cpu",
)


def spectral():
    torch.manual_seed(2)
    return SpectralAutoencoder(
        SpectralAutoencoderConfig(
            sample_rate=8000,
            latent_channels=5,
            n_fft=64,
            tonal_bins=20,
            dim=16,
            mlp_dim=24,
            encoder_blocks=1,
            decoder_blocks=2,
        )
    )


def pipeline_of(method, kind="spectral", device="cpu"):
    """DITTO's teacher or DITTO-2's student; "ctm" is a student that takes both levels and the guidance."""
    if method == DITTO:
        made = small_pipeline(sampler="heun", schedule=None, device=device)
    elif kind == "ctm":
        made = small_pipeline(
            device=device,
            dit=small_config(takes_sigma_to=True, takes_guidance=True),
            parameterization="ctm",
            sampling=Sampling("ctm", 4, 2.0, sigma_min=0.01, spacing="interval"),
        )
    else:
        made = small_pipeline(sampler="pingpong", steps=4, guidance=1.0, device=device)
    if kind == "spectral":
        autoencoder = spectral().to(device).eval().requires_grad_(False)
        made = PrestoPipeline(made.config, made.dit, autoencoder, conditioner=made.conditioner)
    return made
