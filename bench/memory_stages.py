"""What `python -m bench memory` runs in a process of its own: one stage of a generation, by presto or plain PyTorch.

Plain PyTorch is `ReferenceDiT`, which computes every step's modulation and text keys and values in the step, and
diffusers' Oobleck.  Weights are zeros: memory does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench import decode, machine
from bench.generation import TEXT_TOKENS
from bench.meter import Meter, give_back, parameter_bytes, zeros
from bench.names import PRESTO, REFERENCE
from presto_models import EDM, Conditioning, DiT, DiTConfig, ReferenceDiT, initial_noise, sample_pingpong
from presto_models.autoencoders import Oobleck, OobleckConfig
from presto_models.diffusion.sampling import Sampling
from presto_models.engine import Engine, Plan
from presto_models.stereo import MonoToStereo, StereoConfig

WEIGHTS, PRECOMPUTED, STEP, DECODE, STEREO, GENERATION = (
    "weights",
    "precomputed",
    "step",
    "decode",
    "stereo",
    "generation",
)
DIT, DECODER, WIDENER = "dit", "decoder", "widener"
NEEDS = {
    WEIGHTS: (DIT, DECODER, WIDENER),
    PRECOMPUTED: (DIT,),
    STEP: (DIT,),
    DECODE: (DECODER,),
    STEREO: (WIDENER,),
    GENERATION: (DIT, DECODER, WIDENER),
}
ONE_SIDED = (PRECOMPUTED, STEREO)
"""Stages that plain PyTorch does not have, or has no module of its own for."""


@dataclass(frozen=True)
class Case:
    """One measurement; plain values, so that a process of its own can be told."""

    stage: str
    implementation: str
    batch: int
    latents: int
    config: str
    dtype: str
    steps: int
    device: str


def measure(fields: dict[str, Any]) -> dict[str, int | None]:
    """Bytes of a :class:`Case`, beyond what the process held before the weights, when the stage had run once small.

    ``weights_bytes``: the parameters.  ``resting_bytes``: held when the stage is over, its result included.
    ``peak_bytes``: the most while it ran, weights included.  ``reserved_bytes``: the most that the GPU's allocator had
    from the driver.
    """
    case = Case(**fields)
    _measure(replace(case, config="tiny", batch=1, latents=16), 0)  # loads libraries and their kernels
    give_back()
    return _measure(case, Meter(torch.device(case.device)).held())


def _measure(case: Case, nothing: int) -> dict[str, int | None]:
    device, dtype = torch.device(case.device), machine.DTYPES[case.dtype]
    modules = {name: _on(module, device, dtype) for name, module in _modules(case).items()}
    measured = Meter(device)
    measured.reset()
    with torch.no_grad():
        result = _run(case, modules, device, dtype)()
    resting = measured.held()
    del result
    return {
        "weights_bytes": parameter_bytes(*modules.values()),
        "resting_bytes": resting - nothing,
        "peak_bytes": measured.peak() - nothing,
        "reserved_bytes": measured.reserved(),
    }


def _modules(case: Case) -> dict[str, nn.Module]:
    """What the stage needs, without memory but for the small module; what is imported is imported here."""
    oobleck = _oobleck(case.config)
    config = replace(DiTConfig.named(case.config), in_channels=oobleck.latent_channels)
    plain = case.implementation == REFERENCE
    make: dict[str, Callable[[], nn.Module]] = {
        DIT: lambda: ReferenceDiT(config) if plain else DiT(config),
        DECODER: lambda: decode.diffusers_module(oobleck) if plain else Oobleck(oobleck),
    }
    modules: dict[str, nn.Module] = {}
    for name in NEEDS[case.stage]:
        if name == WIDENER:
            modules[name] = MonoToStereo(StereoConfig.named(case.config))  # has buffers, which must be right
            continue
        with torch.device("meta"):
            modules[name] = make[name]()
    return modules


def _on(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    if isinstance(module, MonoToStereo):
        return module.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return zeros(module, device, dtype)


def _run(case: Case, modules: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    """The stage as a function, with its inputs made."""
    size = (case.batch, case.latents)
    oobleck, plain = _oobleck(case.config), case.implementation == REFERENCE
    sampling = Sampling("pingpong", steps=case.steps, spacing="interval")
    if case.stage == WEIGHTS:
        return lambda: None
    if case.stage == DECODE:
        latents = torch.zeros(*size, oobleck.latent_channels, device=device, dtype=dtype)
        return lambda: _decoded(modules[DECODER], latents, plain)
    if case.stage == STEREO:
        mono = torch.zeros(case.batch, 1, case.latents * oobleck.hop, device=device)
        return lambda: modules[WIDENER](mono)

    config, edm = modules[DIT].config, EDM(modules[DIT])
    pooled = torch.zeros(case.batch, config.pooled_dim, device=device, dtype=dtype) if config.pooled_dim else None
    tokens = torch.zeros(case.batch, TEXT_TOKENS, config.text_dim, device=device, dtype=dtype)
    text = Conditioning(tokens, pooled)
    shape = (*size, config.in_channels)
    if case.stage in (PRECOMPUTED, STEP):
        precomputed = None if plain else modules[DIT].precompute(text, sampling.levels, length=case.latents)
        if case.stage == PRECOMPUTED:
            return lambda: precomputed
        given = {} if precomputed is None else {"precomputed": precomputed.step(0)}
        x = torch.zeros(shape, device=device)
        return lambda: edm(x, sampling.sigmas[0], text, **given)
    seeds = torch.arange(case.batch)
    if not plain:
        channels = oobleck.latent_channels
        means, ones = (0.0,) * channels, (1.0,) * channels
        engine = Engine(edm, modules[DECODER], latent_mean=means, latent_std=ones, stereo=modules[WIDENER])
        plan = Plan(case.batch, case.latents, sampling, stereo=True)
        return lambda: engine(plan, text, seeds)

    def generate() -> Tensor:
        seed = seeds.to(device)
        x = sampling.sigmas[0] * initial_noise(shape, seed=seed, device=device)
        x = sample_pingpong(lambda x, sigma: edm(x, sigma, text), x, sampling.sigmas, seed=seed)
        return modules[WIDENER](_decoded(modules[DECODER], x.to(dtype), plain))

    return generate


def _decoded(decoder: Any, latents: Tensor, plain: bool) -> Tensor:
    return decode.decode_plain(decoder, latents) if plain else decoder.decode(latents)


def _oobleck(config: str) -> OobleckConfig:
    return replace(OobleckConfig.named(config), audio_channels=1)  # stereo is a module behind it


def sides(stage: str, compare: bool) -> tuple[str, ...]:
    """Who is measured."""
    return (REFERENCE, PRESTO) if compare and stage not in ONE_SIDED else (PRESTO,)
