"""DITTO's search by plain PyTorch: the same walk, checkpoints, controls and Adam as the product's, other networks.

Everything of a search is :mod:`presto_models.ditto`'s own but the engine: here a :class:`PlainEngine`, which runs
:class:`presto_models.ReferenceDiT` and a decoder of PyTorch's own layers on the same weights and computes nothing
before the walk: modulation, text keys and values and rotary tables are made in every call of the network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from bench import plain_ops
from bench.plain_decoder import plain_decoder, plain_spectral
from presto_models import Conditioning, DiT, ReferenceDiT, classifier_free, edm_coefficients
from presto_models.autoencoders import Oobleck
from presto_models.autoencoders.spectral import SpectralAutoencoder
from presto_models.engine import Engine, Plan
from presto_models.pipeline import PrestoPipeline


class PlainEngine(Engine):
    """An engine's plan by plain PyTorch.

    Args:
        pipeline: whose engine it stands in for.
        dtype: of the weights, which are then copied; None: the pipeline's own, shared where they can be.

    Attributes:
        network: called as a ReferenceDiT is; may be exchanged, as torch.compile does.
    """

    network: Callable[..., Tensor]

    def __init__(self, pipeline: PrestoPipeline, dtype: torch.dtype | None = None) -> None:
        own, config = pipeline.engine, pipeline.config
        autoencoder, self.plain_decode = own.autoencoder, cast(Callable[[Tensor], Tensor] | None, None)
        if isinstance(autoencoder, SpectralAutoencoder):
            autoencoder = plain_spectral(autoencoder, dtype)
        elif isinstance(autoencoder, Oobleck):
            self.plain_decode = plain_decoder(autoencoder, dtype)
        else:
            raise TypeError(f"plain PyTorch has no decoder for {type(autoencoder).__name__}")
        super().__init__(own.edm, autoencoder, latent_mean=config.latent_mean, latent_std=config.latent_std)
        if dtype is not None:
            self.mean, self.scale = own.mean.to(dtype), own.scale.to(dtype)
        self.network = reference_of(pipeline.dit, dtype)

    def prepare(self, plan: Plan, conditioning: Conditioning) -> Callable[..., Tensor]:  # type: ignore[override]
        """``denoise(x, sigma)``, or ``denoise(x, sigma, sigma_to)``; nothing but the batch is made here."""
        dit, edm, guidance = cast(DiT, self.edm.dit).config, self.edm, plan.sampling.guidance
        guided = guidance != 1 and not dit.takes_guidance
        given = conditioning.with_null() if guided else conditioning

        def denoise(x: Tensor, sigma: float, sigma_to: float = 0.0) -> Tensor:
            def of_each(value: float) -> Tensor:
                return torch.full((x.shape[0],), value, dtype=x.dtype, device=x.device)

            extras = {"guidance": of_each(guidance)} if dit.takes_guidance else {}
            if dit.takes_sigma_to:
                extras["sigma_to"] = of_each(sigma_to)
            kept = None if plan.schedule is None else plan.schedule.kept(sigma)
            c_in = edm_coefficients(sigma, edm.sigma_data)[2]
            level = of_each(sigma)
            output = self.network(c_in * x, level, given, blocks=kept, **extras)
            return plain_ops.edm_denoise(output, x, level, sigma_data=edm.sigma_data, sigma_min=edm.boundary_sigma)

        return classifier_free(denoise, guidance) if guided else denoise

    def decode(self, x: Tensor) -> Tensor:
        """Audio ``[B, channels, N hop]`` of what the DiT works on."""
        if self.plain_decode is None:
            return super().decode(x)
        return self.plain_decode(torch.addcmul(self.mean, x, self.scale))


def reference_of(dit: DiT, dtype: torch.dtype | None = None) -> ReferenceDiT:
    """The plain network on a DiT's own weights, or on a copy of them in another dtype."""
    with torch.device("meta"):
        reference = ReferenceDiT(dit.config)
    weights = {name: weight.detach().to(dtype=dtype) for name, weight in dit.state_dict().items()}
    reference.load_state_dict(weights, assign=True)
    return reference.eval().requires_grad_(False)


def with_engine(pipeline: PrestoPipeline, engine: Engine) -> PrestoPipeline:
    """The pipeline, run by another engine."""
    other = copy.copy(pipeline)
    other.engine = engine
    return other


def compiled(engine: PlainEngine) -> PlainEngine:
    """The same with its network under torch.compile."""
    other = copy.copy(engine)
    network = cast(nn.Module, engine.network)
    other.network = cast(Callable[..., Tensor], torch.compile(network, dynamic=False, fullgraph=True))
    return other


def heard(engine: Engine, x: Tensor) -> list[Tensor]:
    """What is judged of the decoder: audio, or of a spectral one its frames.

    The phases of frames are sums over time, in which a rounding error may choose another peak: of them nothing could be
    told, and what makes audio of frames is one code on both sides.
    """
    if isinstance(engine.autoencoder, SpectralAutoencoder):
        frames = engine.autoencoder.frames(torch.addcmul(engine.mean, x, engine.scale))
        return [frames.log_magnitude, frames.advance]
    return [engine.decode(x)]
