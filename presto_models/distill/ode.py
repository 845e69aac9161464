"""The guided teacher's ODE, one step of a solver at a time, with noise levels of their own for every sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from presto_models.conditioning import Conditioning
from presto_models.diffusion import EDM

Denoise = Callable[[Tensor, Tensor], Tensor]  # x [B, N, C] at levels [B] to D


def guided(edm: EDM, conditioning: Conditioning, scale: Tensor) -> Denoise:
    """D_0 + scale (D_c - D_0) with a scale for each sample ``[B]``; one call of twice the batch (2207.12598)."""
    both, weight = conditioning.with_null(), scale[:, None, None]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        conditional, unconditional = edm(torch.cat((x, x)), torch.cat((sigma, sigma)), both).chunk(2)
        return torch.lerp(unconditional, conditional, weight.to(conditional.dtype))

    return denoise


def heun_step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, *, lowest: float) -> Tensor:
    """Heun's step of dx/dsigma = (x - D(x; sigma)) / sigma from ``sigma`` to ``sigma_next``, both ``[B]``.

    To 0 it is Euler's, as in EDM's Algorithm 1 (2206.00364); where both levels are one, x comes back exactly.

    Args:
        lowest: what a level of 0 is taken for where the network must be asked all the same; its answer is not used.
    """
    step, safe = (sigma_next - sigma)[:, None, None], sigma.clamp(min=lowest)
    slope = (x - denoise(x, safe)) / safe[:, None, None]
    euler = x + step * slope
    after = sigma_next.clamp(min=lowest)
    slope_after = (euler - denoise(euler, after)) / after[:, None, None]
    heun = x + step * (slope + slope_after) / 2
    return torch.where((sigma_next > 0)[:, None, None], heun, euler)
