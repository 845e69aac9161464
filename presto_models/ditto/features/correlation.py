"""Whether two curves, or two matrices, go up and down together."""

from __future__ import annotations

from torch import Tensor


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Correlation of each row of x ``[B, n]`` with y ``[n]``, ``[B]``; about 0 for a row that does not change."""
    x, y = x - x.mean(-1, keepdim=True), y - y.mean()
    return (x * y).mean(-1) / ((x.square().mean(-1) + 1e-8) * (y.square().mean() + 1e-8)).sqrt()
