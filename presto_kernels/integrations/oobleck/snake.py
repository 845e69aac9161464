"""``Snake1d`` of diffusers and ``SnakeBeta`` of stable-audio-tools.

y = x + sin(alpha x)^2 / (beta + 1e-9)          alpha and beta themselves, or exp of what the module holds
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from presto_kernels.integrations.oobleck.anatomy import holds_logarithms
from presto_kernels.integrations.swapping import Accelerated
from presto_kernels.oobleck import periodic
from presto_kernels.ops.checks import DTYPES, refuse_transforms


class FusedSnake(Accelerated):
    """``forward`` in one pass on ``snake``, and its backward in one; in the layout that x has."""

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        given = (*inputs, *named.values())
        reason = _refusal(self, given)
        if reason:
            self._presto.pass_on(self, reason)
            return super().forward(*inputs, **named)
        (x,) = given
        with self._presto.settings.running():
            return _snake(self, x)


def _refusal(self: Any, given: tuple[Any, ...]) -> str | None:
    if len(given) != 1 or not isinstance(given[0], Tensor):
        return "called with more or something else than one tensor"
    (x,) = given
    axes = x.dim() == 3 or (x.dim() > 3 and self.alpha.dim() == 3)  # Snake1d flattens what follows the channels
    if not axes or x.shape[1] != self.alpha.numel() or not x.numel() or x.dtype not in DTYPES:
        return "an input of another shape or dtype"
    if transformed(x, self.alpha, self.beta):
        return "a transform of torch.func, or forward-mode differentiation"
    return None


def _snake(self: Any, x: Tensor) -> Tensor:
    alpha, beta = (t.flatten().to(torch.promote_types(t.dtype, torch.float32)) for t in (self.alpha, self.beta))
    if holds_logarithms(self):
        alpha, beta = alpha.exp(), beta.exp()
    # The original computes in what the two dtypes make together: fp32 weights and bf16 x give fp32.
    x = x.to(torch.promote_types(x.dtype, self.alpha.dtype))
    return periodic(x, alpha, beta) if x.dim() == 3 else periodic(x.flatten(2), alpha, beta).reshape(x.shape)


def transformed(*tensors: Tensor) -> bool:
    """Whether a transform that our ops refuse is at work."""
    try:
        refuse_transforms("snake", tensors)
    except NotImplementedError:
        return True
    return False


def fits(module: Any) -> str | None:
    least = getattr(module, "no_div_by_zero", 1e-9)
    return None if least == 1e-9 else f"it adds {least} to beta"
