"""The ops as one writes them in PyTorch without kernels of one's own, with the arguments our models give them.

Written for speed, as :mod:`presto_models.dit_reference` is, not for accuracy as the package's "reference" backend is.
``renoise`` draws PyTorch's normals: other noise of the same distribution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_models.embeddings import apply_rotary


def adaln_modulate(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """LN(x) (1 + scale) + shift; scale and shift ``[B|1, D]``, both or neither."""
    h = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    if scale is None or shift is None:
        return h
    return torch.addcmul(shift.unsqueeze(1), h, 1 + scale.unsqueeze(1))


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    """x + gate branch; gate ``[D]`` or ``[B|1, D]``."""
    if gate is None:
        return x + branch
    return torch.addcmul(x, gate if gate.dim() == 1 else gate.unsqueeze(1), branch)


def gated_residual_adaln(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """The two above, one after the other."""
    x = gated_residual(x, branch, gate)
    return x, adaln_modulate(x, scale, shift, weight=weight, eps=eps)


def qk_norm_rope(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor | None]:
    """RMS norm of every head, then rotary where there are tables; ``[B, N, H, Dh]``."""

    def one(x: Tensor, weight: Tensor | None) -> Tensor:
        y = F.rms_norm(x, x.shape[-1:], weight, eps)
        return y if cos is None or sin is None else apply_rotary(y.transpose(1, 2), cos, sin).transpose(1, 2)

    return one(q, q_weight), None if k is None else one(k, k_weight)


def attention(q: Tensor, k: Tensor, v: Tensor, *, key_lengths: Tensor | None = None) -> Tensor:
    """scaled_dot_product_attention; ``[B, N, H, Dh]``."""
    mask = None
    if key_lengths is not None:
        mask = (torch.arange(k.shape[1], device=k.device) < key_lengths.unsqueeze(1))[:, None, None]
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return y.transpose(1, 2)


def swiglu(x: Tensor) -> Tensor:
    """value silu(gate), the two halves of x."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.silu(gate)


def snake(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """x + sin(alpha x)^2 / (beta + 1e-9); x ``[B, C, T]``."""
    return x + (beta[:, None] + 1e-9).reciprocal() * torch.sin(alpha[:, None] * x).pow(2)


def edm_denoise(
    model_output: Tensor, x: Tensor, sigma: Tensor, *, sigma_data: float = 0.5, sigma_min: float = 0.0
) -> Tensor:
    """c_skip x + c_out F of EDM, or of a consistency model where ``sigma_min`` is above 0."""
    sigma = sigma.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    above, square = sigma - sigma_min, sigma_data * sigma_data
    c_out = sigma_data * above * (sigma * sigma + square).rsqrt()
    return torch.addcmul(square / (above * above + square) * x, c_out, model_output.to(x.dtype))


def renoise(
    x0: Tensor, sigma: float | Tensor, *, seed: int | Tensor, offset: int | Tensor, signal: float = 1.0
) -> Tensor:
    """signal x0 + sigma eps, eps from PyTorch's generator: the seed and the offset are not read."""
    return signal * x0 + sigma * torch.randn_like(x0)
