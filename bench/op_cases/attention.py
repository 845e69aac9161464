"""Attention: how it is called here, PyTorch's own beside it, and what it must do."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import presto_kernels
from bench.counting import Count
from bench.op_cases.op import Normal, Op, Outputs, Shape

WINDOW = 17  # each side, as in Stable Audio 3's large decoder
CHUNK = 128  # queries of a chunk of the chunked baseline: the best of 32, 64, 128 and 256 at the shape below


def _make(shape: Shape, normal: Normal) -> Outputs:
    """q and k as QK-norm leaves them, v a view of the fused projection."""
    batch, length, heads, dim = shape[:4]
    v = normal(batch, length, 3, heads, dim).unbind(2)[2]
    return normal(batch, length, heads, dim), normal(batch, length, heads, dim), v


def _eager(q: Tensor, k: Tensor, v: Tensor) -> Outputs:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return (F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous(),)


def _sdpa_on(backend: SDPBackend):
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Outputs:
        with sdpa_kernel(backend):
            return _eager(q, k, v)

    return attention


def _head_major(q: Tensor, k: Tensor, v: Tensor) -> Outputs:
    """SDPA on a head's rows side by side in memory, copies included."""
    q, k, v = (t.transpose(1, 2).contiguous() for t in (q, k, v))
    return (F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous(),)


def _presto(q: Tensor, k: Tensor, v: Tensor) -> Outputs:
    return (presto_kernels.attention(q, k, v),)


def _count(b: int, n: int, keys: int, h: int, d: int, itemsize: int, formula: str) -> Count:
    return Count(
        2 * b * (n + keys) * h * d * itemsize,
        4 * b * h * n * keys * d,
        "read q, write y: 2 B N H Dh s; read k, v: 2 B M H Dh s",
        f"q k' and p v: {formula} (softmax not counted)",
    )


def _forward(shape: Shape, itemsize: int) -> Count:
    b, n, h, d = shape
    return _count(b, n, n, h, d, itemsize, "4 B H N N Dh")


def _backward(shape: Shape, itemsize: int) -> Count:
    b, n, h, d = shape
    return Count(
        8 * b * n * h * d * itemsize + 4 * b * n * h,
        10 * b * h * n * n * d,
        "read q, k, v, y, dy, write dq, dk, dv: 8 B N H Dh s; read the row sums: 4 B N H",
        "q k' again, dy v', p' dy, ds k, ds' q: 10 B H N N Dh",
    )


def _make_cross(shape: Shape, normal: Normal) -> Outputs:
    batch, length, heads, dim, keys = shape
    k, v = normal(batch, keys, 2, heads, dim).unbind(2)
    return normal(batch, length, heads, dim), k, v


def _cross(shape: Shape, itemsize: int) -> Count:
    b, n, h, d, keys = shape
    return _count(b, n, keys, h, d, itemsize, "4 B H N M Dh")


def _cross_backward(shape: Shape, itemsize: int) -> Count:
    b, n, h, d, keys = shape
    return Count(
        4 * b * (n + keys) * h * d * itemsize + 4 * b * n * h,
        10 * b * h * n * keys * d,
        "read q, y, dy, write dq: 4 B N H Dh s; read k, v, write dk, dv: 4 B M H Dh s; read the row sums: 4 B N H",
        "q k' again, dy v', p' dy, ds k, ds' q: 10 B H N M Dh",
    )


def _window_constants(shape: Shape, device: torch.device) -> dict[str, Any]:
    return {"window": (WINDOW, WINDOW)}


def _masked(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int]) -> Outputs:
    """SDPA with an additive mask: what is left where nothing knows windows."""
    position = torch.arange(q.shape[1], device=q.device)
    distance = position[None] - position[:, None]
    hidden = (distance < -window[0]) | (distance > window[1])
    mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, float("-inf"))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return (F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).contiguous(),)


def _chunked(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int]) -> Outputs:
    """SDPA chunk by chunk of queries, each with the keys it may see."""
    length, out = q.shape[1], []
    for first in range(0, length, CHUNK):
        last = min(first + CHUNK, length)
        begin, end = max(first - window[0], 0), min(last + window[1], length)
        distance = torch.arange(begin, end, device=q.device)[None] - torch.arange(first, last, device=q.device)[:, None]
        visible = (distance >= -window[0]) & (distance <= window[1])
        chunk = (t.transpose(1, 2) for t in (q[:, first:last], k[:, begin:end], v[:, begin:end]))
        out.append(F.scaled_dot_product_attention(*chunk, attn_mask=visible))
    return (torch.cat(out, dim=2).transpose(1, 2).contiguous(),)


def _presto_window(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int]) -> Outputs:
    return (presto_kernels.attention(q, k, v, window=window),)


def _window(shape: Shape, itemsize: int) -> Count:
    b, n, h, d = shape
    pairs = n * (2 * WINDOW + 1) - WINDOW * (WINDOW + 1)
    return Count(
        4 * b * n * h * d * itemsize,
        4 * b * h * pairs * d,
        "read q, k, v, write y: 4 B N H Dh s",
        "q k' and p v over the pairs within the window: 4 B H pairs Dh (softmax not counted)",
    )


OPS = (
    Op(
        "attention",
        "BxNxHxDh",
        ("1x1379x16x64", "2x1379x16x64", "1x324x16x64", "1x1379x8x128"),
        ("q", "k", "v"),
        ("y",),
        _eager,
        _presto,
        _forward,
        _backward,
        _make,
        baselines={"sdpa, heads side by side": _head_major},
        cuda_baselines={
            "sdpa cudnn": _sdpa_on(SDPBackend.CUDNN_ATTENTION),
            "sdpa flash": _sdpa_on(SDPBackend.FLASH_ATTENTION),
        },
    ),
    Op(
        "attention_cross",
        "BxNxHxDhxM",
        ("1x1379x16x64x64", "1x1379x16x64x257"),
        ("q", "k", "v"),
        ("y",),
        _eager,
        _presto,
        _cross,
        _cross_backward,
        _make_cross,
        public="attention",
    ),
    Op(
        "attention_window",
        "BxNxHxDh",
        ("1x21964x12x64",),
        ("q", "k", "v"),
        ("y",),
        _masked,
        _presto_window,
        _window,
        None,
        _make,
        _window_constants,
        public="attention",
        baselines={"chunked": _chunked},
        oracle=_chunked,
        default=False,
    ),
)
