"""How many bytes an op must move and how many floating-point operations it must do, each with its formula in words.

Bytes are the fewest there can be: every input read once, every output written once, nothing kept in between. Operations
count an addition, a multiplication, a division or a root as one, a fused multiply-add as two. In the formulas B is the
batch, N the tokens, D the width, s the bytes of one element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """Bytes and floating-point operations of one call, and the formulas they came from."""

    bytes: int
    flops: int
    bytes_formula: str
    flops_formula: str

    def gbs(self, milliseconds: float) -> float:
        """GB/s at this time a call."""
        return self.bytes / milliseconds / 1e6

    def tflops(self, milliseconds: float) -> float:
        """TFLOP/s at this time a call."""
        return self.flops / milliseconds / 1e9

    def floor_ms(self, copy_gbs: float, matmul_tflops: float) -> float:
        """The time no implementation can beat on a machine with these ceilings: the longer of moving and computing."""
        return max(self.bytes / copy_gbs / 1e6, self.flops / matmul_tflops / 1e9)


Shape = tuple[int, int, int]


def adaln_modulate(shape: Shape, itemsize: int) -> Count:
    b, n, d = shape
    return Count(
        (2 * b * n * d + 2 * b * d) * itemsize,
        7 * b * n * d + 4 * b * n + b * d,
        "read x, write h: 2 BND s; read scale, shift: 2 BD s",
        "mean 1, centre 1, square and sum 2, times rstd 1, times (1+scale) 1, plus shift 1: 7 BND; "
        "two means, eps and root of each row: 4 BN; 1+scale: BD",
    )


def adaln_modulate_backward(shape: Shape, itemsize: int) -> Count:
    b, n, d = shape
    return Count(
        (3 * b * n * d + 3 * b * d) * itemsize,
        13 * b * n * d + 2 * b * n + b * d,
        "read dh, x, write dx: 3 BND s; read scale, write dscale, dshift: 3 BD s",
        "xhat again from mean and rstd 2, dscale 2, dshift 1, g = dh(1+scale) 1, sums of g and g xhat 3, "
        "dx = rstd(g - mean g - xhat mean(g xhat)) 4: 13 BND; two means a row: 2 BN; 1+scale: BD",
    )


def gated_residual(shape: Shape, itemsize: int) -> Count:
    b, n, d = shape
    return Count(
        (3 * b * n * d + b * d) * itemsize,
        2 * b * n * d,
        "read x, branch, write x': 3 BND s; read gate: BD s",
        "times gate, plus x: 2 BND",
    )


def gated_residual_backward(shape: Shape, itemsize: int) -> Count:
    b, n, d = shape
    return Count(
        (3 * b * n * d + 2 * b * d) * itemsize,
        3 * b * n * d,
        "read dx', branch, write dbranch: 3 BND s (dx is dx' itself); read gate, write dgate: 2 BD s",
        "dbranch = dx' gate 1, dgate = sum of dx' branch 2: 3 BND",
    )


def gated_residual_adaln(shape: Shape, itemsize: int) -> Count:
    b, n, d = shape
    return Count(
        (4 * b * n * d + 3 * b * d) * itemsize,
        9 * b * n * d + 4 * b * n + b * d,
        "read x, branch, write x', h: 4 BND s; read gate, scale, shift: 3 BD s",
        "gated_residual 2 BND and adaln_modulate 7 BND + 4 BN + BD",
    )


def gated_residual_adaln_backward(shape: Shape, itemsize: int) -> Count:
    b, n, d = shape
    return Count(
        (6 * b * n * d + 5 * b * d) * itemsize,
        17 * b * n * d + 2 * b * n + b * d,
        "read dx', dh, x', branch, write dx, dbranch: 6 BND s; read gate, scale, write dgate, dscale, dshift: 5 BD s",
        "adaln_modulate's backward 13 BND + 2 BN + BD, plus dx' 1 BND, gated_residual's backward 3 BND",
    )


FORWARD: dict[str, Callable[[Shape, int], Count]] = {
    "adaln_modulate": adaln_modulate,
    "gated_residual": gated_residual,
    "gated_residual_adaln": gated_residual_adaln,
}
BACKWARD: dict[str, Callable[[Shape, int], Count]] = {
    "adaln_modulate": adaln_modulate_backward,
    "gated_residual": gated_residual_backward,
    "gated_residual_adaln": gated_residual_adaln_backward,
}
