"""Gated activations and Snake in plain PyTorch: what the others are measured against, and what runs when there is no
other.

    glu     y = value * act(gate)                    x = (value, gate), or (gate, value) with ``gate_first``
            act(g) = g sigmoid(g)  ("silu"),  g (1 + erf(g / sqrt 2)) / 2  ("gelu")  or  sin(pi g)  ("sinpi")
    snake   y = x + sin(alpha x)^2 / (beta + 1e-9)

Arithmetic is fp32, or float64 as soon as one input is float64; y is rounded once to x's dtype (gated linear units:
Shazeer 2020, arXiv 2002.05202; Snake: Ziyin et al. 2020, arXiv 2006.08195, with BigVGAN's own amplitude beta).
Autograd differentiates it as it stands.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SNAKE_EPSILON = 1e-9


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def sin_pi(x: Tensor) -> Tensor:
    """sin(pi x), of what x lies beyond the nearest whole number: exact where pi x would be rounded."""
    whole = x.detach().round()
    sine = torch.sin(torch.pi * (x - whole))
    return torch.where(whole % 2 == 0, sine, -sine)


def glu(x: Tensor, act: str, gate_first: bool) -> Tensor:
    """value * act(gate), in x's dtype; ``act`` is "silu", "gelu" or "sinpi"."""
    value, gate = x.to(_compute_dtype(x)).chunk(2, dim=-1)
    if gate_first:
        value, gate = gate, value
    activations: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "sinpi": sin_pi}
    activate = activations[act]
    return (value * activate(gate)).to(x.dtype)


def snake(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """x + sin(alpha x)^2 / (beta + 1e-9), in x's dtype."""
    dtype = _compute_dtype(x, alpha, beta)
    wide, alpha, beta = x.to(dtype), alpha.to(dtype).unsqueeze(-1), beta.to(dtype).unsqueeze(-1)
    return (wide + torch.sin(alpha * wide).square() / (beta + SNAKE_EPSILON)).to(x.dtype)
