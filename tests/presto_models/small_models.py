"""Small transformers with weights that all matter, and inputs for them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from presto_models import Conditioning, DiT, DiTConfig, ReferenceDiT, randomize_weights


@dataclass
class Inputs:
    """x ``[B, N, C]``, sigma ``[B]``, text: the first sample has none, the second half of it, the others all."""

    x: Tensor
    sigma: Tensor
    conditioning: Conditioning

    def to(self, dtype: torch.dtype) -> "Inputs":
        return Inputs(self.x.to(dtype), self.sigma.to(dtype), self.conditioning.to(dtype=dtype))

    def __getitem__(self, samples: slice) -> "Inputs":
        return Inputs(self.x[samples], self.sigma[samples], self.conditioning[samples])

    @property
    def args(self) -> tuple[Tensor, Tensor, Conditioning]:
        return self.x, self.sigma, self.conditioning


def small_config(**changes) -> DiTConfig:
    """Six blocks, heads of 16 dims of which 12 are rotated: odd on purpose."""
    sizes = {
        "num_blocks": 6,
        "dim": 48,
        "num_heads": 3,
        "mlp_dim": 72,
        "in_channels": 5,
        "text_dim": 20,
        "pooled_dim": 14,
        "rotary_dim": 12,
        "noise_features": 16,
    }
    return DiTConfig(**(sizes | changes))


def make_dit(config: DiTConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> DiT:
    """Random weights, drawn in fp32, so that two dtypes of one seed are one model, rounded."""
    dit = DiT(config)
    randomize_weights(dit, seed=seed)
    return dit.to(dtype)


def reference_of(dit: DiT, dtype: torch.dtype | None = None) -> ReferenceDiT:
    """The plain model with the weights as ``dit`` has them, then cast."""
    reference = ReferenceDiT(dit.config).to(next(dit.parameters()).dtype)
    reference.load_state_dict(dit.state_dict())
    return reference if dtype is None else reference.to(dtype)


def make_inputs(config: DiTConfig, batch: int = 3, length: int = 37, tokens: int = 7, seed: int = 0) -> Inputs:
    """float64, of values that bf16 holds exactly, so that every dtype is given the same numbers."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16().double()

    lengths = torch.full((batch,), tokens)
    lengths[0] = 0
    if batch > 1:
        lengths[1] = tokens // 2
    pooled = normal(batch, config.pooled_dim) if config.pooled_dim else None
    conditioning = Conditioning(normal(batch, tokens, config.text_dim), pooled, lengths)
    sigma = torch.logspace(1.5, -1.5, batch).bfloat16().double()
    return Inputs(normal(batch, length, config.in_channels), sigma, conditioning)
