"""QK-norm with rotary: how it is called here, eager PyTorch beside it, and what it must do."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import presto_kernels
from bench.counting import Count
from bench.op_cases.op import Normal, Op, Outputs, Shape
from presto_models.embeddings import apply_rotary, rotary_tables

EPS = 1e-6


def _make(shape: Shape, normal: Normal) -> Outputs:
    """q and k as views of one fused projection [B, N, 3, H, Dh], as a DiT block has them."""
    batch, length, heads, dim = shape
    q, k, _ = normal(batch, length, 3, heads, dim).unbind(2)
    return q, k, 1 + 0.1 * normal(dim), 1 + 0.1 * normal(dim)


def _constants(shape: Shape, device: torch.device) -> dict[str, Any]:
    cos, sin = rotary_tables(shape[1], shape[3], device=device)
    return {"cos": cos, "sin": sin}


def _eager(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor) -> Outputs:
    return tuple(
        apply_rotary(F.rms_norm(t, t.shape[-1:], weight, EPS).transpose(1, 2), cos, sin).transpose(1, 2).contiguous()
        for t, weight in ((q, q_weight), (k, k_weight))
    )


def _presto(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor) -> Outputs:
    return presto_kernels.qk_norm_rope(q, k, cos, sin, q_weight=q_weight, k_weight=k_weight, eps=EPS)


def _forward(shape: Shape, itemsize: int) -> Count:
    b, n, h, d = shape
    return Count(
        (4 * b * n * h * d + 2 * d) * itemsize + 4 * n * d,
        14 * b * n * h * d + 6 * b * n * h,
        "read and write q and k: 4 B N H Dh s; read the two weights: 2 Dh s; read cos, sin: 4 N Dh",
        "square and sum 2, times rstd 1, times weight 1, rotation 3 of two tensors: 14 B N H Dh; "
        "mean, eps and root of each head: 6 B N H",
    )


def _backward(shape: Shape, itemsize: int) -> Count:
    b, n, h, d = shape
    return Count(
        (6 * b * n * h * d + 4 * d) * itemsize + 4 * n * d,
        28 * b * n * h * d + 8 * b * n * h,
        "read dq', dk', q, k, write dq, dk: 6 B N H Dh s; read the weights, write their gradients: 4 Dh s; "
        "read cos, sin: 4 N Dh",
        "rotation back 3, square and sum 2, times rstd 1, dweight 2, times weight 1, sum of g y 2, "
        "dx = rstd (g - y mean(g y)) 3 of two tensors: 28 B N H Dh; two means, eps and root of each head: 8 B N H",
    )


# DynamicTanh in the place of the norm, and half of each head turned, as in the decoders of Stable Audio 3.


def _make_dyt(shape: Shape, normal: Normal) -> Outputs:
    q, k, q_weight, k_weight = _make(shape, normal)
    return q, k, q_weight, k_weight, 1 + 0.1 * normal(1), 1 + 0.1 * normal(1)


def _half_constants(shape: Shape, device: torch.device) -> dict[str, Any]:
    cos, sin = rotary_tables(shape[1], shape[3] // 2, device=device)
    return {"cos": cos, "sin": sin, "norm": "dyt"}


def _eager_dyt(q: Tensor, k: Tensor, *norms: Tensor, cos: Tensor, sin: Tensor, norm: str) -> Outputs:
    q_weight, k_weight, q_alpha, k_alpha = norms
    made = []
    for t, weight, alpha in ((q, q_weight, q_alpha), (k, k_weight, k_alpha)):
        turned, rest = (weight * torch.tanh(alpha * t)).chunk(2, dim=-1)
        turned = apply_rotary(turned.transpose(1, 2), cos, sin).transpose(1, 2)
        made.append(torch.cat((turned, rest), dim=-1))
    return tuple(made)


def _presto_dyt(q: Tensor, k: Tensor, *norms: Tensor, **options: Any) -> Outputs:
    of_norms = dict(zip(("q_weight", "k_weight", "q_alpha", "k_alpha"), norms, strict=True))
    return presto_kernels.qk_norm_rope(q, k, **of_norms, **options)


def _dyt_forward(shape: Shape, itemsize: int) -> Count:
    b, n, h, d = shape
    return Count(
        (4 * b * n * h * d + 2 * d + 2) * itemsize + 2 * n * d,
        9 * b * n * h * d,
        "read and write q and k: 4 B N H Dh s; read weights and alphas: (2 Dh + 2) s; read cos, sin: 2 N Dh",
        "times alpha, tanh (as one), times weight 3, rotation 3 of half: 4.5 of two tensors: 9 B N H Dh",
    )


def _dyt_backward(shape: Shape, itemsize: int) -> Count:
    b, n, h, d = shape
    return Count(
        (6 * b * n * h * d + 4 * d + 4) * itemsize + 2 * n * d,
        25 * b * n * h * d,
        "read dq', dk', q, k, write dq, dk: 6 B N H Dh s; read weights and alphas, write their gradients: "
        "(4 Dh + 4) s; read cos, sin: 2 N Dh",
        "rotation back 3 of half, t = tanh(alpha x) 2, dweight 2, g = dy weight (1 - t^2) 4, dx = g alpha 1, "
        "dalpha = sum of g x 2: 12.5 of two tensors: 25 B N H Dh",
    )


OPS = (
    Op(
        "qk_norm_rope",
        "BxNxHxDh",
        ("1x1379x16x64", "2x1379x16x64", "1x1024x24x64", "1x216x16x64", "1x1379x8x128"),
        ("q", "k", "q_weight", "k_weight"),
        ("q", "k"),
        _eager,
        _presto,
        _forward,
        _backward,
        _make,
        _constants,
    ),
    Op(
        "qk_norm_rope_dyt",
        "BxNxHxDh",
        ("1x5508x12x64",),
        ("q", "k", "q_weight", "k_weight", "q_alpha", "k_alpha"),
        ("q", "k"),
        _eager_dyt,
        _presto_dyt,
        _dyt_forward,
        _dyt_backward,
        _make_dyt,
        _half_constants,
        public="qk_norm_rope",
        default=False,
    ),
)
