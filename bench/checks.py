"""Correctness before timing: a wrong implementation is refused, whatever its speed.

The rule and its numbers are `presto_kernels.testing`'s: against the float64 formula on the inputs as rounded, an
implementation may err at most twice as much as ordinary PyTorch in the same dtypes does, plus two ulps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from presto_kernels.testing import within


class WrongResult(AssertionError):
    """An implementation's result is further from float64 than rounding explains."""


def check(
    implementation: str,
    results: Sequence[Tensor],
    oracles: Sequence[Tensor],
    plains: Sequence[Tensor],
    names: Sequence[str],
    *,
    rowwise: bool,
) -> float:
    """Compares every output (or gradient) with its float64 oracle; returns the largest error over what is allowed.

    Args:
        rowwise: also judge row by row, where a result is an activation [B, N, D] of a row-wise op.

    Raises:
        WrongResult: naming the implementation and every result that is wrong; NaN never passes.
    """
    if len(results) != len(oracles):
        raise WrongResult(f"{implementation}: {len(results)} results where {len(oracles)} are due")
    outcomes = []
    for name, result, oracle, plain in zip(names, results, oracles, plains, strict=True):
        if result.shape != oracle.shape or result.dtype != plain.dtype:
            got, due = (f"{t.dtype} {list(t.shape)}" for t in (result, plain))
            raise WrongResult(f"{implementation}: {name} is {got}, due is {due}")
        eps = torch.finfo(result.dtype).eps
        outcomes.append(within(name, result, oracle, plain, rowwise=rowwise and oracle.dim() == 3, eps=eps))
    wrong = [str(outcome) for outcome in outcomes if not outcome.ok]
    if wrong:
        raise WrongResult(f"{implementation}: {'; '.join(wrong)}")
    return max(outcome.ratio for outcome in outcomes)
