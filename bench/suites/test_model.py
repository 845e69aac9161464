"""A step of the DiT, what a sampler does between two of them, and the decoder; tiny sizes, and those of --config."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import presto_kernels
from bench import machine
from bench.generation import Generation, Implementation, Setup
from presto_models.autoencoders import Oobleck, OobleckConfig

DTYPES = ("bf16", "fp32")
STEPS, LATENTS = 4, 64  # the decoder's time is proportional to its latents


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    configs = dict.fromkeys(["tiny", metafunc.config.getoption("config") or "tiny"])
    metafunc.parametrize("config", configs)
    metafunc.parametrize("dtype", DTYPES)


@torch.no_grad()
def test_dit_step(config: str, dtype: str, device, time_it) -> None:
    """EDM's preconditioning and all blocks, text and modulation prepared, as in a generation."""
    generation = Generation(Setup(config, STEPS, dtype, 1.0, device))
    presto = Implementation(generation.presto, generation.full)
    ((_, refusal),) = generation.check({"presto": presto}).items()
    if refusal is not None:
        raise refusal
    counts = generation.counts(presto.blocks(0)).values()
    must = {"bytes": sum(count.bytes for count in counts), "flops": sum(count.flops for count in counts)}
    time_it(generation.steps(presto)[0], **must)


@torch.no_grad()
def test_sampler_step(config: str, dtype: str, device, time_it) -> None:
    """The model's output to a denoised state, and new noise on it: a step of ping-pong sampling beside the model."""
    generation = Generation(Setup(config, STEPS, dtype, 1.0, device))
    x, sigma = generation.inputs[0], torch.full((1,), generation.sigmas[0], device=device)
    output = torch.randn_like(x).to(machine.DTYPES[dtype])
    after = torch.full((1,), generation.sigmas[1], device=device)
    seed, offset = torch.zeros(1, dtype=torch.int64, device=device), torch.ones(1, dtype=torch.int64, device=device)

    def step() -> torch.Tensor:
        return presto_kernels.renoise(presto_kernels.edm_denoise(output, x, sigma), after, seed=seed, offset=offset)

    time_it(step)


@torch.no_grad()
def test_decode(config: str, dtype: str, device, time_it) -> None:
    """Latents to mono audio by the decoder at the model's scale."""
    sizes = replace(OobleckConfig.named(config), audio_channels=1)
    torch.manual_seed(0)
    decoder = Oobleck(sizes).to(device=device, dtype=machine.DTYPES[dtype]).eval().requires_grad_(False)
    latents = torch.randn(1, LATENTS, sizes.latent_channels).to(device, machine.DTYPES[dtype])
    time_it(lambda: decoder.decode(latents))
