"""The AdaLN family: how its ops are called here, eager PyTorch beside them, and what they must do."""

from __future__ import annotations

from typing import Any

import torch
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


# What Stable Audio 3 asks of the family beside that: a norm that is none, and a second addend at the seam.


def _dyt_options(shape: Shape, device: torch.device) -> dict[str, Any]:
    return {"scale": None, "shift": None, "norm": "dyt"}


def _eager_dyt(x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Outputs:
    return (weight * torch.tanh(alpha * x) + bias,)


def _presto_dyt(x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Outputs:
    return (presto_kernels.adaln_modulate(x, weight=weight, bias=bias, alpha=alpha, **options),)


def _make_dyt(shape: Shape, normal: Normal) -> Outputs:
    width = shape[2]
    return normal(*shape), 1 + 0.1 * normal(1), 1 + 0.1 * normal(width), normal(width)


def _dyt_count(shape: Shape, itemsize: int) -> counting.Count:
    b, n, d = shape
    return counting.Count(
        (2 * b * n * d + 2 * d + 1) * itemsize,
        4 * b * n * d,
        "read x, write h: 2 BND s; read weight, bias, alpha: (2 D + 1) s",
        "times alpha, tanh (as one), times weight, plus bias: 4 BND",
    )


def _dyt_backward_count(shape: Shape, itemsize: int) -> counting.Count:
    b, n, d = shape
    return counting.Count(
        (3 * b * n * d + 3 * d + 2) * itemsize,
        12 * b * n * d,
        "read dh, x, write dx: 3 BND s; read weight, alpha, write dweight, dbias, dalpha: (3 D + 2) s",
        "t = tanh(alpha x) 2, dweight 2, dbias 1, g = dh weight (1 - t^2) 4, dx = g alpha 1, dalpha = sum of g x 2: "
        "12 BND",
    )


def _two_addends_options(shape: Shape, device: torch.device) -> dict[str, Any]:
    return {"gate": None, "norm": "rms", "eps": EPS}


def _eager_two_addends(
    x: Tensor, branch: Tensor, residual2: Tensor, scale: Tensor, shift: Tensor, **options: Any
) -> Outputs:
    x = x + branch + residual2
    return x, F.rms_norm(x, (x.shape[-1],), eps=EPS) * (1 + scale[:, None]) + shift[:, None]


def _presto_two_addends(
    x: Tensor, branch: Tensor, residual2: Tensor, scale: Tensor, shift: Tensor, **options: Any
) -> Outputs:
    return presto_kernels.gated_residual_adaln(x, branch, scale=scale, shift=shift, residual2=residual2, **options)


def _two_addends_count(shape: Shape, itemsize: int) -> counting.Count:
    b, n, d = shape
    return counting.Count(
        (5 * b * n * d + 2 * b * d) * itemsize,
        7 * b * n * d + 3 * b * n + b * d,
        "read x, branch, residual2, write x', h: 5 BND s; read scale, shift: 2 BD s",
        "two additions, square and sum 2, times rstd 1, times (1+scale) 1, plus shift 1: 7 BND; "
        "mean, eps and root of each row: 3 BN; 1+scale: BD",
    )


def _two_addends_backward_count(shape: Shape, itemsize: int) -> counting.Count:
    b, n, d = shape
    return counting.Count(
        (4 * b * n * d + 3 * b * d) * itemsize,
        11 * b * n * d + b * n + b * d,
        "read dx', dh, x', write dx, which is dbranch and dresidual2 too: 4 BND s; "
        "read scale, write dscale, dshift: 3 BD s",
        "xhat from rstd 1, dscale 2, dshift 1, g = dh(1+scale) 1, sum of g xhat 2, "
        "dx = rstd(g - xhat mean(g xhat)) 3, plus dx' 1: 11 BND; a mean a row: BN; 1+scale: BD",
    )


def _make(names: tuple[str, ...]):
    def make(shape: Shape, normal: Normal) -> Outputs:
        """Modulations [B, D] are `chunk()` views of one [B, 6 D] tensor, as in a DiT block."""
        batch, _, width = shape
        modulations = dict(zip(("shift", "scale", "gate"), normal(batch, 6 * width).chunk(6, dim=-1), strict=False))
        return tuple(modulations[name] if name in modulations else normal(*shape) for name in names)

    return make


OPS = (
    *(
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
    ),
    Op(
        "adaln_modulate_dyt",
        "BxNxD",
        ("1x5508x768", "1x1379x1000"),
        ("x", "alpha", "weight", "bias"),
        ("h",),
        _eager_dyt,
        _presto_dyt,
        _dyt_count,
        _dyt_backward_count,
        _make_dyt,
        _dyt_options,
        public="adaln_modulate",
        default=False,
    ),
    Op(
        "gated_residual_adaln_residual2",
        "BxNxD",
        ("1x388x1024", "1x388x1536"),
        ("x", "branch", "residual2", "scale", "shift"),
        ("x'", "h"),
        _eager_two_addends,
        _presto_two_addends,
        _two_addends_count,
        _two_addends_backward_count,
        _make(("x", "branch", "residual2", "scale", "shift")),
        _two_addends_options,
        public="gated_residual_adaln",
        default=False,
    ),
)
