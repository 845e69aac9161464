"""Head norm and rotary embedding in plain PyTorch: what the others are measured against, and what runs when there is
no other.

    y   = norm(x) * weight + bias                                          per head, over Dh
    out = [y1 cos - y2 sin, y2 cos + y1 sin, rest of y]                    rounded to x's dtype

with norm(x) = x / sqrt(mean(x^2) + eps)  (rms),  (x - mean) / sqrt(var + eps)  (layer),  x / max(|x|, eps)  (l2),
tanh(alpha x)  (dyt)  or x.
y1 and y2 are the first and the second half of the first R = 2 cos.shape[-1] elements, or, interleaved, the even and the
odd ones of them.  Products and statistics are fp32, or float64 as soon as one input is float64.  Autograd
differentiates it as it stands.  (Rotary: Su et al. 2021, RoFormer; the half-split form is GPT-NeoX's.)
"""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(x: Tensor, norm: str | None, eps: float, alpha: Tensor | None = None) -> Tensor:
    """norm(x) over the last axis, in x's dtype; the variance is taken of the centred row.  ``alpha``: of "dyt"."""
    if norm is None:
        return x
    if alpha is not None:
        # By way of [Dh] its gradient is summed in two steps, the same on every number of threads.
        return torch.tanh(alpha.to(x.dtype).expand(x.shape[-1]) * x)
    if norm == "l2":
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(eps)
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rotate(y: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding of y ``[B, N, H, Dh]`` on its first 2 * cos.shape[-1] elements; cos, sin ``[N, R/2]``."""
    half = cos.shape[-1]
    cos, sin = cos.to(y.dtype)[:, None], sin.to(y.dtype)[:, None]
    rotated, rest = y[..., : 2 * half], y[..., 2 * half :]
    if interleaved:
        first, second = rotated.unflatten(-1, (half, 2)).unbind(-1)
    else:
        first, second = rotated.split(half, dim=-1)
    parts = (first * cos - second * sin, second * cos + first * sin)
    turned = torch.stack(parts, dim=-1).flatten(-2) if interleaved else torch.cat(parts, dim=-1)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def norm_rope(
    x: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor | None,
    norm: str | None,
    eps: float,
    interleaved: bool,
) -> Tensor:
    """One of q and k: contiguous, new, in x's dtype."""
    given = [t for t in (x, cos, weight, bias, alpha) if t is not None]
    y = x.to(torch.float64 if any(t.dtype == torch.float64 for t in given) else torch.float32)
    y = normalise(y, norm, eps, alpha)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    if cos is not None and sin is not None:
        y = rotate(y, cos, sin, interleaved)
    y = y.to(x.dtype).contiguous()
    return y.clone() if norm is None and len(given) == 1 else y  # nothing was computed: still a new tensor
