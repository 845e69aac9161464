"""What `python -m bench ablate` takes apart: a generation by the product's engine, noise to waveform, in parts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from bench import machine
from bench.generation import TEXT_TOKENS
from bench.plain_decoder import plain_decoder
from presto_kernels import LayerSchedule
from presto_models import EDM, Conditioning, DiT, ReferenceDiT, classifier_free, randomize_weights
from presto_models.autoencoders import Oobleck
from presto_models.autoencoders.spectral import SpectralAutoencoder
from presto_models.engine import Engine, Plan
from presto_models.pipeline import PrestoPipeline

PREPARE, STEPS, DECODE = "prepare", "steps", "decode"
PARTS = (PREPARE, STEPS, DECODE)
CHECKED_LATENTS = 24  # of the decoder: longer than Oobleck's context on both sides, short enough for a wider dtype

Denoise = Callable[[Tensor, float], Tensor]


@dataclass
class Product:
    """An engine, and one generation it is asked for.

    ``reference``: plain PyTorch's network on the DiT's own weights.  ``plain_decode``: of an Oobleck, the decoder in
    PyTorch's own layers; None for another autoencoder.
    """

    engine: Engine
    plan: Plan
    conditioning: Conditioning
    seeds: Tensor
    reference: ReferenceDiT
    plain_decode: Callable[[Tensor], Tensor] | None

    @property
    def dit(self) -> DiT:
        return cast(DiT, self.engine.edm.dit)

    @property
    def spectral(self) -> bool:
        return isinstance(self.engine.autoencoder, SpectralAutoencoder)

    @property
    def blocks(self) -> list[int]:
        """How many blocks run at each step."""
        depth, schedule = self.dit.config.num_blocks, self.plan.schedule
        return [depth if schedule is None else schedule.budget(sigma) for sigma in self.plan.sampling.levels]

    def call(self, part: str) -> Callable[[], Any]:
        """Runs one part once.  What the steps are given is made here, now: under the ablation they are timed with."""
        engine, plan = self.engine, self.plan
        if part == PREPARE:
            return partial(engine.prepare, plan, self.conditioning)
        if part == DECODE:
            return partial(engine.decode, self.latents(plan.length))
        denoise = engine.prepare(plan, self.conditioning)

        def steps() -> Tensor:
            x = engine.noise(plan, self.seeds)
            for index in range(plan.sampling.steps):
                x = engine.step(plan, denoise, x, index, self.seeds)
            return x

        return steps

    def latents(self, length: int) -> Tensor:
        """What a decoder is given: ``[1, length, C]``, of the standard deviation the DiT works at."""
        random = torch.Generator(self.engine.device).manual_seed(2)
        size = (1, length, self.engine.autoencoder.latent_channels)
        return self.engine.edm.sigma_data * torch.randn(size, generator=random, device=self.engine.device)

    def noisy(self, sigma: float) -> Tensor:
        """x of a step at this noise level, the same whatever is switched off."""
        x = self.latents(self.plan.length)
        random = torch.Generator(self.engine.device).manual_seed(3)
        return x + sigma * torch.randn(x.shape, generator=random, device=x.device)

    def plain_denoiser(self, network: ReferenceDiT | None = None, dtype: torch.dtype | None = None) -> Denoise:
        """The plan's denoiser by plain PyTorch, nothing computed beforehand: modulation and text in every step.

        Args:
            network, dtype: another copy of the weights and its dtype, for an oracle.
        """
        depth, schedule, guidance = self.dit.config.num_blocks, self.plan.schedule, self.plan.sampling.guidance
        own = self.engine.edm
        edm = EDM(network or self.reference, own.sigma_data, boundary_sigma=own.boundary_sigma)
        given = self.conditioning if guidance == 1 else self.conditioning.with_null()
        given = given if dtype is None else given.to(dtype=dtype)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            blocks = tuple(range(depth)) if schedule is None else schedule.kept(sigma)
            return edm(x, sigma, given, blocks=blocks)

        return denoise if guidance == 1 else classifier_free(denoise, guidance)

    def decoded(self) -> list[Tensor]:
        """What is compared of the decoder: a short stretch of audio, or of a spectral one its frames.

        The phases of frames are sums over time, in which a rounding error may choose another peak: of them nothing
        could be told.
        """
        x = self.latents(min(CHECKED_LATENTS, self.plan.length))
        if isinstance(self.engine.autoencoder, SpectralAutoencoder):
            frames = self.engine.autoencoder.frames(torch.addcmul(self.engine.mean, x, self.engine.scale))
            return [frames.log_magnitude, frames.advance]
        return [self.engine.decode(x)]

    def decoded_wide(self, dtype: torch.dtype) -> list[Tensor]:
        """:meth:`decoded` by plain PyTorch in another dtype."""
        autoencoder = self.engine.autoencoder
        x = self.latents(min(CHECKED_LATENTS, self.plan.length))
        latents = torch.addcmul(self.engine.mean, x, self.engine.scale).to(dtype)
        if isinstance(autoencoder, Oobleck):
            return [plain_decoder(autoencoder, dtype)(latents)]
        frames = cast(SpectralAutoencoder, copy.deepcopy(autoencoder).to(dtype)).frames(latents)
        return [frames.log_magnitude, frames.advance]


def random_product(config: str, *, steps: int, dtype: str, device: torch.device, audio: float | None) -> Product:
    """A model of the named size with random weights and the default layer schedule."""
    pipeline = PrestoPipeline.random(config, text=None, device=device, dtype=machine.DTYPES[dtype])
    randomize_weights(pipeline.dit)
    depth, keep_last = pipeline.dit.config.num_blocks, pipeline.dit.config.keep_last
    return _product(pipeline, LayerSchedule.default(depth, keep_last=keep_last), steps, audio)


def shipped_product(name: str, *, steps: int, dtype: str, device: torch.device, audio: float | None) -> Product:
    """A checkpoint, with the layer schedule it has."""
    pipeline = PrestoPipeline.from_pretrained(name, device=device, dtype=machine.DTYPES[dtype])
    for module in (pipeline.dit, pipeline.autoencoder):
        module.requires_grad_(False)
    return _product(pipeline, pipeline.config.schedule, steps, audio)


@torch.no_grad()
def _product(pipeline: PrestoPipeline, schedule: LayerSchedule | None, steps: int, audio: float | None) -> Product:
    engine, config = pipeline.engine, pipeline.dit.config
    if config.takes_sigma_to or config.takes_guidance:
        raise ValueError("ablate knows models that take the noise level alone, not a target level or the guidance")
    samples = None if audio is None else pipeline.samples(audio)
    length = config.nominal_latents if samples is None else engine.autoencoder.latents_for(samples)
    normal = partial(torch.randn, generator=torch.Generator(engine.device).manual_seed(0), device=engine.device)
    dtype = next(pipeline.dit.parameters()).dtype
    pooled = normal(1, config.pooled_dim).to(dtype) if config.pooled_dim else None
    with torch.device("meta"):
        reference = ReferenceDiT(config)
    reference.load_state_dict(pipeline.dit.state_dict(), assign=True)
    return Product(
        engine,
        Plan(1, length, pipeline.config.sampling.changed(steps=steps), schedule),
        Conditioning(normal(1, TEXT_TOKENS, config.text_dim).to(dtype), pooled),
        torch.zeros(1, dtype=torch.int64, device=engine.device),
        reference.eval().requires_grad_(False),
        plain_decoder(engine.autoencoder) if isinstance(engine.autoencoder, Oobleck) else None,
    )
