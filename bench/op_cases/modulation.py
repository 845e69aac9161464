"""The AdaLN family: how its ops are called here, eager PyTorch beside them, and what they must do."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

import presto_kernels
from bench import counting
from bench.op_cases.op import Normal, Op, Outputs, Shape

EPS = 1e-6
SHAPES = ("1x1379x1024", "2x1379x1024", "1x1025x1536", "2x1379x1000", "1x216x1024")


def _eager_adaln_modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Outputs:
    return (F.layer_norm(x, (x.shape[-1],), eps=EPS) * (1 + scale[:, None]) + shift[:, None],)


def _eager_gated_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Outputs:
    return (x + gate[:, None] * branch,)


def _eager_gated_residual_adaln(x: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> Outputs:
    x = x + gate[:, None] * branch
    return x, F.layer_norm(x, (x.shape[-1],), eps=EPS) * (1 + scale[:, None]) + shift[:, None]


def _presto_adaln_modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Outputs:
    return (presto_kernels.adaln_modulate(x, scale, shift, eps=EPS),)


def _presto_gated_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Outputs:
    return (presto_kernels.gated_residual(x, branch, gate),)


def _presto_gated_residual_adaln(x: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> Outputs:
    return presto_kernels.gated_residual_adaln(x, branch, gate, scale, shift, eps=EPS)


def _adaln_modulate_count(shape: Shape, itemsize: int) -> counting.Count:
    b, n, d = shape
    return counting.Count(
        (2 * b * n * d + 2 * b * d) * itemsize,
        7 * b * n * d + 4 * b * n + b * d,
        "read x, write h: 2 BND s; read scale, shift: 2 BD s",
        "mean 1, centre 1, square and sum 2, times rstd 1, times (1+scale) 1, plus shift 1: 7 BND; "
        "two means, eps and root of each row: 4 BN; 1+scale: BD",
    )


def _adaln_modulate_backward_count(shape: Shape, itemsize: int) -> counting.Count:
    b, n, d = shape
    return counting.Count(
        (3 * b * n * d + 3 * b * d) * itemsize,
        13 * b * n * d + 2 * b * n + b * d,
        "read dh, x, write dx: 3 BND s; read scale, write dscale, dshift: 3 BD s",
        "xhat again from mean and rstd 2, dscale 2, dshift 1, g = dh(1+scale) 1, sums of g and g xhat 3, "
        "dx = rstd(g - mean g - xhat mean(g xhat)) 4: 13 BND; two means a row: 2 BN; 1+scale: BD",
    )


def _gated_residual_count(shape: Shape, itemsize: int) -> counting.Count:
    b, n, d = shape
    return counting.Count(
        (3 * b * n * d + b * d) * itemsize,
        2 * b * n * d,
        "read x, branch, write x': 3 BND s; read gate: BD s",
        "times gate, plus x: 2 BND",
    )


def _gated_residual_backward_count(shape: Shape, itemsize: int) -> counting.Count:
    b, n, d = shape
    return counting.Count(
        (3 * b * n * d + 2 * b * d) * itemsize,
        3 * b * n * d,
        "read dx', branch, write dbranch: 3 BND s (dx is dx' itself); read gate, write dgate: 2 BD s",
        "dbranch = dx' gate 1, dgate = sum of dx' branch 2: 3 BND",
    )


def _gated_residual_adaln_count(shape: Shape, itemsize: int) -> counting.Count:
    b, n, d = shape
    return counting.Count(
        (4 * b * n * d + 3 * b * d) * itemsize,
        9 * b * n * d + 4 * b * n + b * d,
        "read x, branch, write x', h: 4 BND s; read gate, scale, shift: 3 BD s",
        "gated_residual 2 BND and adaln_modulate 7 BND + 4 BN + BD",
    )


def _gated_residual_adaln_backward_count(shape: Shape, itemsize: int) -> counting.Count:
    b, n, d = shape
    return counting.Count(
        (6 * b * n * d + 5 * b * d) * itemsize,
        17 * b * n * d + 2 * b * n + b * d,
        "read dx', dh, x', branch, write dx, dbranch: 6 BND s; read gate, scale, write dgate, dscale, dshift: 5 BD s",
        "adaln_modulate's backward 13 BND + 2 BN + BD, plus dx' 1 BND, gated_residual's backward 3 BND",
    )


def _make(names: tuple[str, ...]):
    def make(shape: Shape, normal: Normal) -> Outputs:
        """Modulations [B, D] are `chunk()` views of one [B, 6 D] tensor, as in a DiT block."""
        batch, _, width = shape
        modulations = dict(zip(("shift", "scale", "gate"), normal(batch, 6 * width).chunk(6, dim=-1), strict=False))
        return tuple(modulations[name] if name in modulations else normal(*shape) for name in names)

    return make


OPS = tuple(
    Op(name, "BxNxD", SHAPES, tensors, results, eager, presto, forward, backward, _make(tensors))
    for name, tensors, results, eager, presto, forward, backward in (
        (
            "adaln_modulate",
            ("x", "scale", "shift"),
            ("h",),
            _eager_adaln_modulate,
            _presto_adaln_modulate,
            _adaln_modulate_count,
            _adaln_modulate_backward_count,
        ),
        (
            "gated_residual",
            ("x", "branch", "gate"),
            ("x'",),
            _eager_gated_residual,
            _presto_gated_residual,
            _gated_residual_count,
            _gated_residual_backward_count,
        ),
        (
            "gated_residual_adaln",
            ("x", "branch", "gate", "scale", "shift"),
            ("x'", "h"),
            _eager_gated_residual_adaln,
            _presto_gated_residual_adaln,
            _gated_residual_adaln_count,
            _gated_residual_adaln_backward_count,
        ),
    )
)
