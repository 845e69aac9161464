"""The AdaLN family in plain PyTorch: what the others are measured against, and what runs when there is no other.

    x'   = x + g(gate) * branch + residual2          rounded to x's dtype
    h    = (norm(x') * weight + bias) * (1 + scale) + shift        norm taken of x' as stored
    norm = (x' - mean) / sqrt(var + eps)  (layer)   or   x' / sqrt(mean(x'^2) + eps)  (rms)   or   tanh(alpha x')  (dyt)

Statistics and products are fp32, or float64 as soon as one input is float64 (AdaLN-Zero: Peebles & Xie 2023, eq. in
section 3; DynamicTanh, ``dyt``: Zhu et al. 2025; the ``sigmoid_one_minus`` gate is Stable Audio 3's).  Autograd
differentiates it as it stands.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def _over_tokens(modulation: Tensor, dtype: torch.dtype) -> Tensor:
    """[D], [B|1, D] or [B|1, 1|N, D] -> something that broadcasts against [B, N, D]."""
    modulation = modulation.to(dtype)
    return modulation.unsqueeze(1) if modulation.dim() == 2 else modulation


def add_gated(x: Tensor, branch: Tensor, gate: Tensor | None, gate_fn: str, residual2: Tensor | None = None) -> Tensor:
    """x + g(gate) * branch + residual2, in x's dtype."""
    dtype = _compute_dtype(x, branch, gate, residual2)
    update = branch.to(dtype)
    if gate is not None:
        gate = _over_tokens(gate, dtype)
        update = update * (torch.sigmoid(1 - gate) if gate_fn == "sigmoid_one_minus" else gate)
    total = x.to(dtype) + update
    if residual2 is not None:
        total = total + _over_tokens(residual2, dtype)
    return total.to(x.dtype)


def normalise(x: Tensor, norm: str, eps: float) -> Tensor:
    """norm(x) over the last axis, in x's dtype; the variance is taken of the centred row."""
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def modulate(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: str,
    eps: float,
    alpha: Tensor | None = None,
) -> Tensor:
    """(norm(x) * weight + bias) * (1 + scale) + shift, in x's dtype.  ``alpha`` comes with ``norm="dyt"``."""
    dtype = _compute_dtype(x, scale, shift, weight, bias, alpha)
    if alpha is None:
        h = normalise(x.to(dtype), norm, eps)
    else:
        # By way of [D] its gradient is summed in two steps, the same on every number of threads.
        h = torch.tanh(alpha.to(dtype).expand(x.shape[-1]) * x.to(dtype))
    if weight is not None:
        h = h * _over_tokens(weight, dtype)
    if bias is not None:
        h = h + _over_tokens(bias, dtype)
    if scale is not None:
        h = h * (1 + _over_tokens(scale, dtype))
    if shift is not None:
        h = h + _over_tokens(shift, dtype)
    return h.to(x.dtype)
