"""Noise levels, positions and other conditions as vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from presto_models.dit_config import DiTConfig

_LOWEST_SIGMA = 1e-6  # ln 0 has no embedding; EDM's own lowest noise level is 2e-3
_LOWEST_FREQUENCY, _HIGHEST_FREQUENCY = 0.125, 8.0


def fourier_features(t: Tensor, num_features: int) -> Tensor:
    """cos and sin of 2 pi f t for ``num_features / 2`` frequencies f.

    Args:
        t: ``[...]``, any floating dtype; computed in fp32, or float64 for a float64 t.
        num_features: even.

    Returns:
        ``[..., num_features]``, fp32 or float64.

    Our choice: f is geometric from 1/8 to 8, made for t = ln(sigma) / 4 (from -1.6 to 1.1): the slowest wave does not
    repeat over that range, and the fastest still tells noise levels 2 % apart without making the network rough in
    sigma.
    """
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    count = num_features // 2
    ratio = math.log(_HIGHEST_FREQUENCY / _LOWEST_FREQUENCY) / max(count - 1, 1)
    frequencies = _LOWEST_FREQUENCY * torch.exp(ratio * torch.arange(count, device=t.device, dtype=t.dtype))
    angles = 2 * math.pi * t.unsqueeze(-1) * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def noise_level(sigma: Tensor) -> Tensor:
    """EDM's c_noise = ln(sigma) / 4 (2206.00364, Table 1), sigma held at 1e-6 or above."""
    return sigma.to(torch.promote_types(sigma.dtype, torch.float32)).clamp(min=_LOWEST_SIGMA).log() / 4


def rotary_tables(
    length: int, rotary_dim: int, *, base: float = 10000.0, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, the frequencies ``base ** (-2 i / rotary_dim)``.

    Returns:
        (cos, sin), each fp32 ``[length, rotary_dim / 2]``, for :func:`apply_rotary`.

    Computed from the formula each time, never from a stored buffer: ``module.to(bfloat16)`` would round that.

    Source: Su et al. 2021 (RoFormer), section 3.2.2.
    """
    exponents = torch.arange(0, rotary_dim, 2, device=device, dtype=torch.float32) / rotary_dim
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), base**-exponents)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first ``2 * cos.shape[-1]`` dims of each head by their position's angle; the others pass.

        y_1 = x_1 cos - x_2 sin,   y_2 = x_2 cos + x_1 sin,   x_1 and x_2 the two halves of the rotated dims

    Args:
        x: ``[B, H, N, Dh]``.
        cos, sin: ``[N, rotary_dim / 2]``, fp32.

    Returns:
        ``[B, H, N, Dh]``, x's dtype, laid out in memory as x is; products in fp32, rounded once.
    """
    half = cos.shape[-1]
    wide = x[..., : 2 * half].to(torch.promote_types(x.dtype, torch.float32))
    x_1, x_2 = wide.chunk(2, dim=-1)
    y_1 = torch.addcmul(x_1 * cos, x_2, sin, value=-1)
    y_2 = torch.addcmul(x_2 * cos, x_1, sin)
    if 2 * half == x.shape[-1]:
        return torch.cat((y_1, y_2), dim=-1).to(x.dtype)
    return torch.cat((torch.cat((y_1, y_2), dim=-1).to(x.dtype), x[..., 2 * half :]), dim=-1)


def embedding_mlp(in_features: int, dim: int, *, zero: bool = False) -> nn.Sequential:
    """Linear, SiLU, Linear; ``zero`` makes it add nothing until it is trained."""
    last = nn.Linear(dim, dim)
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(in_features, dim), nn.SiLU(), last)


class ConditionEmbedder(nn.Module):
    """One vector of width ``dim`` from everything that conditions the modulation: a sum of small embeddings.

    - sigma, as features of ln(sigma) / 4;
    - pooled text, when the config has it;
    - ``sigma_to`` and the guidance scale, for distilled students (CTM; guidance as an input), zero-initialised so that
      a student starts as its teacher;
    - the layer budget, a learned row per number of kept blocks.  The full budget has no row and nothing is added for
      it, so that running all blocks is bitwise the model without budgets.  Rows start at zero.  Our choice: Presto-L's
      own form of this condition could not be read.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_features = config.noise_features
        self.sigma = embedding_mlp(config.noise_features, config.dim)
        self.pooled = embedding_mlp(config.pooled_dim, config.dim) if config.pooled_dim else None
        self.sigma_to = embedding_mlp(config.noise_features, config.dim, zero=True) if config.takes_sigma_to else None
        self.guidance = embedding_mlp(config.noise_features, config.dim, zero=True) if config.takes_guidance else None
        self.budget = nn.Parameter(torch.zeros(config.num_blocks - 1, config.dim))

    def forward(
        self,
        sigma: Tensor,
        pooled: Tensor | None,
        budget: Tensor | None,
        sigma_to: Tensor | None,
        guidance: Tensor | None,
    ) -> Tensor:
        """``[..., dim]``; sigma, sigma_to, guidance ``[...]``, pooled ``[..., pooled_dim]``, budget ``[..., dim]``."""
        total = self.sigma(self._features(noise_level(sigma)))
        if self.pooled is not None and pooled is not None:
            total = total + self.pooled(pooled.to(total.dtype))
        if self.sigma_to is not None and sigma_to is not None:
            total = total + self.sigma_to(self._features(noise_level(sigma_to)))
        if self.guidance is not None and guidance is not None:
            # Our choice: log1p brings scales 0..20 into the range the features were made for.
            total = total + self.guidance(self._features(guidance.log1p() / 4))
        return total if budget is None else total + budget

    def budget_rows(self, budgets: Sequence[int]) -> Tensor | None:
        """``[len(budgets), dim]``, or None when every budget is full and there is nothing to add.

        Where the rows are trained there is always something: nothing times one of them, so that a batch that happens
        to be full gives them a gradient of zero and not none, for which DDP would wait.
        """
        full = self.budget.shape[0] + 1
        trained = torch.is_grad_enabled() and self.budget.requires_grad and full > 1
        if all(b == full for b in budgets) and not trained:
            return None
        nothing = 0 * self.budget[0] if trained else self.budget.new_zeros(self.budget.shape[1])
        return torch.stack([nothing if b == full else self.budget[b - 1] for b in budgets])

    def _features(self, t: Tensor) -> Tensor:
        return fourier_features(t, self.num_features).to(self.budget.dtype)
