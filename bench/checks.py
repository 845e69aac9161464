"""Correctness before timing: a wrong implementation is refused, whatever its speed.

The rule is DESIGN.md's contract 2, against the float64 formula on the inputs as rounded, with ordinary PyTorch in the test's dtypes
as the measure of what rounding alone costs:  max|y − oracle| ≤ 2·max|plain − oracle| + 2·eps(dtype)·max|oracle|, and the same
with root mean squares.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class WrongResult(AssertionError):
    """An implementation's output is further from float64 than rounding explains."""


def check(
    implementation: str, results: Sequence[Tensor], oracles: Sequence[Tensor], plains: Sequence[Tensor], names: Sequence[str]
) -> float:
    """Compares every output (or gradient) with its float64 oracle; returns the largest error over what is allowed.

    Raises:
        WrongResult: naming the implementation, the output, the error and the bound; NaN never passes.
    """
    if len(results) != len(oracles):
        raise WrongResult(f"{implementation}: {len(results)} results where {len(oracles)} are due")
    worst = 0.0
    for name, result, oracle, plain in zip(names, results, oracles, plains, strict=True):
        if result.shape != oracle.shape or result.dtype != plain.dtype:
            raise WrongResult(
                f"{implementation}: {name} is {result.dtype} {list(result.shape)}, due is {plain.dtype} {list(oracle.shape)}"
            )
        for norm, size in (("max", _largest), ("rms", _rms)):
            error = size(result.double() - oracle)
            bound = 2 * size(plain.double() - oracle) + 2 * torch.finfo(result.dtype).eps * size(oracle)
            if not error <= bound:
                raise WrongResult(f"{implementation}: {name} is off by {norm} {error:.3g}, allowed is {bound:.3g}")
            worst = max(worst, error / bound if bound else 0.0)
    return worst


def _largest(values: Tensor) -> float:
    return values.abs().max().item()


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
