"""What surrounds the steps of a generation: the prompt's embedding, the decoder, the mono-to-stereo module; and on CUDA
the whole of it, noise to waveform, as the product's engine runs it: one graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from bench import decode, machine
from bench.generation import Generation
from presto_models.autoencoders import Oobleck, OobleckConfig, oobleck_from_state_dict
from presto_models.diffusion import EDM
from presto_models.diffusion.sampling import Sampling
from presto_models.engine import Engine, Plan
from presto_models.stereo import MonoToStereo, StereoConfig

PROMPT, DECODE, DECODE_REFERENCE, STEREO = "prompt", "decode", "decode, diffusers", "stereo"


@dataclass
class Stages:
    """Modules with random weights of the named size, in the generation's dtype and on its device, and their inputs.

    Attributes:
        calls: stage to a function that runs it once.
        missing: stage to why it is not there.
    """

    autoencoder: Oobleck
    stereo: MonoToStereo
    calls: dict[str, Callable[[], Any]]
    missing: dict[str, Exception]


@torch.no_grad()
def prepare(generation: Generation) -> Stages:
    """The modules around the DiT at its scale.  The prompt is timed with MiniLM, which has weights of its own; the
    decoder also as diffusers' module on the same weights, where diffusers is installed.
    """
    setup, device = generation.setup, generation.setup.device
    dtype = machine.DTYPES[setup.dtype]
    config = replace(OobleckConfig.named(setup.config), audio_channels=1)  # the paper's: stereo is a module behind it
    missing: dict[str, Exception] = {}
    torch.manual_seed(setup.seed)
    try:
        plain = decode.diffusers_module(config)
        autoencoder = oobleck_from_state_dict(plain.state_dict())
        plain = plain.to(device=device, dtype=dtype)
    except ImportError as error:
        plain, autoencoder = None, Oobleck(config)
        missing[DECODE_REFERENCE] = error
    stereo = MonoToStereo(StereoConfig.named(setup.config))
    for module in (autoencoder, stereo):
        module.to(device=device, dtype=dtype).eval().requires_grad_(False)

    latents = torch.randn(1, generation.config.nominal_latents, config.latent_channels).to(device, dtype)
    mono = torch.randn(1, 1, generation.config.nominal_latents * config.hop).mul(0.1).to(device)
    calls: dict[str, Callable[[], Any]] = {DECODE: partial(autoencoder.decode, latents)}
    if plain is not None:
        calls[DECODE_REFERENCE] = partial(decode.decode_plain, plain, latents)
    calls[STEREO] = partial(stereo, mono)
    try:
        calls[PROMPT] = _new_prompts(device)
    except (ImportError, OSError) as error:
        missing[PROMPT] = error
    return Stages(autoencoder, stereo, calls, missing)


def engine_calls(generation: Generation, stages: Stages, steps: int) -> dict[str, Callable[[], Tensor]]:
    """ "mono" and "stereo": noise to waveform by the engine, which on CUDA replays one graph."""
    channels = stages.autoencoder.latent_channels
    engine = Engine(
        EDM(generation.presto),
        stages.autoencoder,
        latent_mean=(0.0,) * channels,
        latent_std=(1.0,) * channels,
        stereo=stages.stereo,
    )
    sampling = Sampling("pingpong", steps=steps, spacing="interval", guidance=generation.setup.guidance)
    conditioning = generation.conditioning[:1]
    seeds = torch.tensor([generation.setup.seed], dtype=torch.int64)
    calls = {}
    for name, stereo in (("mono", False), ("stereo", True)):
        plan = Plan(1, generation.config.nominal_latents, sampling, stereo=stereo)
        calls[name] = partial(engine, plan, conditioning, seeds)
    return calls


def latents_fit(generation: Generation) -> bool:
    """Whether the DiT's latents are the decoder's: both are chosen by one name, "tiny" for tests apart."""
    return generation.config.in_channels == OobleckConfig.named(generation.setup.config).latent_channels


def totals(stages_ms: dict[str, float], steps_ms: float | None) -> dict[str, float]:
    """Prompt to waveform from medians of the stages: "mono", and "stereo" where that stage was timed."""
    if steps_ms is None or DECODE not in stages_ms:
        return {}
    mono = stages_ms.get(PROMPT, 0.0) + steps_ms + stages_ms[DECODE]
    found = {"mono": mono}
    if STEREO in stages_ms:
        found["stereo"] = mono + stages_ms[STEREO]
    return {name: round(value, 4) for name, value in found.items() if math.isfinite(value)}


def _new_prompts(device: torch.device) -> Callable[[], Any]:
    """Embeds a prompt that was never embedded before, as a first request does."""
    from presto_models.text import load_text_encoder

    encoder, numbers = load_text_encoder("minilm", device=device), count()
    return lambda: encoder([f"a slow chorale for church organ in g minor, number {next(numbers)}"])
