"""Gated activations and Snake: how they are called here, eager PyTorch beside them, and what they must do."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import presto_kernels
from bench.counting import Count
from bench.op_cases.op import Normal, Op, Outputs, Shape

GLU_SHAPES = ("1x1379x2816", "2x1379x4096", "1x1024x6144", "1x216x4096", "1x1379x1001")
SNAKE_SHAPES = ("1x128x110080", "1x512x6880", "1x2048x215", "2x256x27521")


def _make_glu(shape: Shape, normal: Normal) -> Outputs:
    batch, length, inner = shape
    return (normal(batch, length, 2 * inner),)


def _eager_swiglu(x: Tensor) -> Outputs:
    value, gate = x.chunk(2, dim=-1)
    return (value * F.silu(gate),)


def _presto_swiglu(x: Tensor) -> Outputs:
    return (presto_kernels.swiglu(x),)


def _eager_geglu(x: Tensor) -> Outputs:
    value, gate = x.chunk(2, dim=-1)
    return (value * F.gelu(gate),)


def _presto_geglu(x: Tensor) -> Outputs:
    return (presto_kernels.geglu(x),)


def _eager_singlu(x: Tensor) -> Outputs:
    value, gate = x.chunk(2, dim=-1)
    return (value * torch.sin(3.14159265359 * gate),)


def _presto_singlu(x: Tensor) -> Outputs:
    return (presto_kernels.singlu(x),)


def _glu_count(moved: int, flops: int, flops_formula: str) -> Callable[[Shape, int], Count]:
    """Forward moves value, gate and result (3), backward dy, value, gate and their two gradients (5)."""
    moves = {3: "read value and gate, write: 3 BND s", 5: "read dy, value, gate, write dvalue, dgate: 5 BND s"}

    def count(shape: Shape, itemsize: int) -> Count:
        size = shape[0] * shape[1] * shape[2]
        return Count(moved * size * itemsize, flops * size, moves[moved], f"{flops_formula}: {flops} BND")

    return count


_swiglu = _glu_count(3, 5, "negate, exp, add, divide, times value")
_swiglu_backward = _glu_count(5, 11, "s = sigmoid 4, silu 1, dvalue 1, dgate = dy value s (1 + gate (1 - s)) 5")
_geglu = _glu_count(3, 5, "scale, erf (as one), add, half the gate, times it and value")
_geglu_backward = _glu_count(
    5, 12, "c = (1 + erf) / 2 4, gelu 1, dvalue 1, density 3, dgate = dy value (c + gate density) 3"
)

_singlu = _glu_count(3, 3, "times pi, sine (as one), times value")
_singlu_backward = _glu_count(5, 7, "times pi, sine, cosine 3, dvalue 1, dgate = dy value pi cosine 3")


def _make_snake(shape: Shape, normal: Normal) -> Outputs:
    batch, channels, time = shape
    return normal(batch, channels, time), normal(channels).exp(), normal(channels).exp()


def _eager_snake(x: Tensor, alpha: Tensor, beta: Tensor) -> Outputs:
    alpha, beta = alpha[:, None], beta[:, None]
    return (x + torch.sin(alpha * x).square() / (beta + 1e-9),)


def _presto_snake(x: Tensor, alpha: Tensor, beta: Tensor) -> Outputs:
    return (presto_kernels.snake(x, alpha, beta),)


def _snake(shape: Shape, itemsize: int) -> Count:
    size = shape[0] * shape[1] * shape[2]
    return Count(
        2 * (size + shape[1]) * itemsize,
        5 * size + 2 * shape[1],
        "read x, write y: 2 BCT s; read alpha, beta: 2 C s",
        "times alpha, sine, square, over beta, add: 5 BCT; beta + 1e-9 and its inverse: 2 C",
    )


def _snake_backward(shape: Shape, itemsize: int) -> Count:
    size = shape[0] * shape[1] * shape[2]
    return Count(
        (3 * size + 4 * shape[1]) * itemsize,
        15 * size + 2 * shape[1],
        "read dy, x, write dx: 3 BCT s; read alpha, beta, write their gradients: 4 C s",
        "times alpha, sine, cosine 3, sin cos and its product with dy 3, dx 3, dalpha 2, sine squared and dbeta 4: "
        "15 BCT; beta + 1e-9 and its inverse: 2 C",
    )


OPS = (
    Op(
        "swiglu",
        "BxNxD",
        GLU_SHAPES,
        ("x",),
        ("y",),
        _eager_swiglu,
        _presto_swiglu,
        _swiglu,
        _swiglu_backward,
        _make_glu,
    ),
    Op("geglu", "BxNxD", GLU_SHAPES, ("x",), ("y",), _eager_geglu, _presto_geglu, _geglu, _geglu_backward, _make_glu),
    Op(
        "singlu",
        "BxNxD",
        GLU_SHAPES,
        ("x",),
        ("y",),
        _eager_singlu,
        _presto_singlu,
        _singlu,
        _singlu_backward,
        _make_glu,
    ),
    Op(
        "snake",
        "BxCxT",
        SNAKE_SHAPES,
        ("x", "alpha", "beta"),
        ("y",),
        _eager_snake,
        _presto_snake,
        _snake,
        _snake_backward,
        _make_snake,
    ),
)
