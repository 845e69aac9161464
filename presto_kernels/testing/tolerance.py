"""When is a result right?

An implementation may err at most twice as much as ordinary PyTorch does in the same dtypes, plus a hair:

    max|y - oracle| <= 2 max|plain - oracle| + 2 eps(dtype) max|oracle|

and the same with the root mean square in place of the maximum; for row-wise results also row by row.  ``oracle`` is
the float64 formula on the inputs as rounded to the test's dtypes, ``plain`` what a PyTorch user would write.  The idea
(twice the same-dtype error and a band of ulps, against float64) is attention-gym's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """One comparison: ``ratio`` is the error over what is allowed, so right means at most 1."""

    name: str
    measure: str
    ratio: float
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.ratio <= 1

    def __str__(self) -> str:
        verdict = "within" if self.ok else "BEYOND"
        return f"{self.name}: {self.measure} error {self.error:.3e} {verdict} the allowed {self.allowed:.3e}"


def _judge(name: str, measure: str, error: Tensor, plain: Tensor, size: Tensor, eps: float) -> Outcome:
    allowed = 2 * plain + 2 * eps * size
    # 0 / 0 is right: an oracle of exact zeros admits exact zeros.
    ratio = torch.where(error == 0, torch.zeros_like(error), error / allowed)
    ratio = torch.where(ratio.isnan(), torch.full_like(ratio, torch.inf), ratio)
    worst = int(ratio.argmax())
    return Outcome(
        name, measure, float(ratio.flatten()[worst]), float(error.flatten()[worst]), float(allowed.flatten()[worst])
    )


def within(name: str, y: Tensor, oracle: Tensor, plain: Tensor, *, rowwise: bool, eps: float) -> Outcome:
    """The worst of the comparisons for one result.  NaN or infinity where the oracle has none is infinitely wrong."""
    if y.shape != oracle.shape:
        raise ValueError(f"{name}: shape {list(y.shape)} where the oracle has {list(oracle.shape)}")
    if y.numel() == 0:
        return Outcome(name, "empty", 0.0, 0.0, 0.0)
    y, oracle, plain = y.detach(), oracle.detach().double(), plain.detach()
    error, plain_error, size = (y.double() - oracle).abs(), (plain.double() - oracle).abs(), oracle.abs()
    measures: dict[str, Callable[[Tensor], Tensor]] = {
        "max": lambda t: t.max().reshape(1),
        "rms": lambda t: t.square().mean().sqrt().reshape(1),
    }
    if rowwise and y.dim() > 1:
        measures["row"] = lambda t: t.flatten(0, -2).amax(-1)
    outcomes = [_judge(name, measure, of(error), of(plain_error), of(size), eps) for measure, of in measures.items()]
    return max(outcomes, key=lambda outcome: outcome.ratio)


def check(outcomes: list[Outcome]) -> None:
    """``AssertionError`` naming every result that is beyond its tolerance."""
    wrong = [str(outcome) for outcome in outcomes if not outcome.ok]
    if wrong:
        raise AssertionError("; ".join(wrong))
