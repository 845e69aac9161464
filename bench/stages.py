"""What surrounds the steps of a generation, as calls to be traced: the prompt's embedding, the decoder, the
mono-to-stereo module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch

from bench import machine
from bench.generation import Generation
from presto_models.autoencoders import Oobleck, OobleckConfig
from presto_models.stereo import MonoToStereo, StereoConfig

PROMPT, DECODE, STEREO = "prompt", "decode", "stereo"


@dataclass
class Stages:
    """Modules with random weights of the named size, in the generation's dtype and on its device, and their inputs.

    Attributes:
        calls: stage to a function that runs it once; no prompt where there is no text encoder.
    """

    autoencoder: Oobleck
    stereo: MonoToStereo
    calls: dict[str, Callable[[], Any]]


@torch.no_grad()
def prepare(generation: Generation) -> Stages:
    """The modules around the DiT at its scale.  The prompt goes through MiniLM, which has weights of its own."""
    setup, device = generation.setup, generation.setup.device
    dtype = machine.DTYPES[setup.dtype]
    config = replace(OobleckConfig.named(setup.config), audio_channels=1)  # the paper's: stereo is a module behind it
    torch.manual_seed(setup.seed)
    autoencoder = Oobleck(config)
    stereo = MonoToStereo(StereoConfig.named(setup.config))
    for module in (autoencoder, stereo):
        module.to(device=device, dtype=dtype).eval().requires_grad_(False)

    latents = torch.randn(1, generation.config.nominal_latents, config.latent_channels).to(device, dtype)
    mono = torch.randn(1, 1, generation.config.nominal_latents * config.hop).mul(0.1).to(device)
    calls: dict[str, Callable[[], Any]] = {DECODE: partial(autoencoder.decode, latents), STEREO: partial(stereo, mono)}
    with contextlib.suppress(ImportError, OSError):
        calls[PROMPT] = _new_prompts(device)
    return Stages(autoencoder, stereo, calls)


def _new_prompts(device: torch.device) -> Callable[[], Any]:
    """Embeds a prompt that was never embedded before, as a first request does."""
    from presto_models.text import load_text_encoder

    encoder, numbers = load_text_encoder("minilm", device=device), count()
    return lambda: encoder([f"a slow chorale for church organ in g minor, number {next(numbers)}"])
