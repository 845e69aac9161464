"""EDICT (Wallace et al. 2022, 2211.12446): DDIM over two coupled chains, so that every step can be undone exactly.

In EDM's terms, with eps(x) = (x - D(x; sigma)) / sigma, a step from sigma to sigma' of the pair (x, y) is

    x+ = x + (sigma' - sigma) eps(y)        each chain moves by what the network says of the other ...
    y+ = y + (sigma' - sigma) eps(x+)
    x' = p x+ + (1 - p) y+                  ... and the two are mixed, so that they stay together
    y' = p y+ + (1 - p) x'

of which each line can be solved for what it changed:

    y+ = (y' - (1 - p) x') / p              x+ = (x' - (1 - p) y+) / p
    y  = y+ - (sigma' - sigma) eps(x+)      x  = x+ - (sigma' - sigma) eps(y)

The last step, to sigma' = 0, is no exception: eps divides by sigma, the level it comes from, which is above 0 (there it
is x+ = x - y + D(y): D itself where the chains agree), and its inverse asks the network at that same level.

Mixing leaves the mean direction as it is and shrinks x - y by p^2; its inverse enlarges a rounding error of the pair by
at most :attr:`Edict.amplification` = p^(-2 steps) for the mixing alone, hence a state in fp32 or fp64 whatever the
network's dtype.  What the network adds to that depends on the network.  In float64 the state's rounding is far below
what the network's own inputs can tell apart, so that it is asked the same as on the way and answers the same.

Which chain moves first changes from step to step, as in the authors' code: without that it is far less stable.
Where all is noise (D near 0), a step that takes sigma to (1 - r) sigma multiplies the difference of the chains by about
(1 + r) p^2, and so the chains fly apart where steps are large.  On shipped presto-tiny with p = 0.93, from sigma 80 to
0.002: 20 steps give latents of a standard deviation of 300 where 0.5 is right, 50 steps 0.54; over the levels of Stable
Diffusion, which p was chosen for (0.03 to 14.6 standard deviations of the data): 2.6 with 10 steps, 0.51 with 20.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Denoise = Callable[[Tensor, float], Tensor]
Eps = Callable[[Tensor], Tensor]
Pair = tuple[Tensor, Tensor]
MIX = 0.93  # p of 2211.12446, and of 2303.13703's code


class Edict:
    """``edict(noise) -> x``: unit noise ``[B, N, C]`` to what the DiT works on, the first chain of EDICT.

    Args:
        denoise: D(x, sigma), of x in the noise's dtype; for an exact inverse the same x must give bitwise the same D.
        sigmas: falling noise levels, the last 0, at least two steps: with one the second chain would stay noise.
        mix: p, from above 0 to 1; 1 does not mix.
        state: dtype of the pair, float32 or float64.

    Both chains begin at sigma_0 noise.  Gradients flow, with memory that does not depend on the number of steps: a
    forward keeps the last pair alone, and the backward undoes step after step from there, as MemCNN does for DOODL
    (2303.13703, section 4).  One call of the network serves both the inverse and its vector-Jacobian product, so a
    step costs two calls forward, and two calls and their two backwards on the way back: twice what a checkpointed
    DDIM walk costs.  (MemCNN's own backward, which inverts and then runs the step again, needs two calls more.)

    Attributes:
        off: ``[B]``, how far the noise that a backward came back to was from the one the walk began with, in parts of
            the noise's largest magnitude, the worst so far; NaN before the first.  Where it is not small the gradient
            was of another walk.
    """

    def __init__(
        self, denoise: Denoise, sigmas: Sequence[float], *, mix: float = MIX, state: torch.dtype = torch.float64
    ) -> None:
        self.sigmas = tuple(float(s) for s in sigmas)
        if len(self.sigmas) < 3 or self.sigmas[-1] != 0 or any(a <= b for a, b in pairwise(self.sigmas)):
            raise ValueError(f"sigmas must be at least two falling levels and then 0, got {self.sigmas}")
        if not 0 < mix <= 1:
            raise ValueError(f"mix must be above 0 and at most 1, got {mix}")
        if state not in (torch.float32, torch.float64):
            raise ValueError(f"state must be torch.float32 or torch.float64, got {state}")
        self.denoise, self.mix, self.state = denoise, float(mix), state
        self.off: Tensor | None = None

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def model_calls(self) -> int:
        """Of one walk forward."""
        return 2 * self.steps

    @property
    def amplification(self) -> float:
        """p^(-2 steps): how much undoing all the mixing can enlarge a difference between the chains."""
        return self.mix ** (-2 * self.steps)

    def __call__(self, noise: Tensor) -> Tensor:
        return self.pair(noise)[0]

    def pair(self, noise: Tensor) -> Pair:
        """Both chains at their end, in the noise's dtype; differentiable."""
        if self.off is None or self.off.shape != noise.shape[:1]:
            self.off = torch.full(noise.shape[:1], float("nan"), device=noise.device)
        return _ThroughInverse.apply(noise, self)

    def forward(self, x: Tensor, y: Tensor, *, called_in: torch.dtype) -> Pair:
        """From a pair at sigma_0 to its end, both in :attr:`state`; plain autograd keeps every step.

        Args:
            called_in: the dtype of what the network is asked, float32 unless the model is float64.
        """
        for index in range(self.steps):
            x, y = step(self._eps(index, called_in), x, y, self._shift(index), self.mix, swapped=index % 2 == 1)
        return x, y

    def inverse(self, x: Tensor, y: Tensor, *, called_in: torch.dtype) -> Pair:
        """From a pair at the end back to the pair at sigma_0."""
        for index in reversed(range(self.steps)):
            x, y = undo(self._eps(index, called_in), x, y, self._shift(index), self.mix, swapped=index % 2 == 1)
        return x, y

    def _shift(self, index: int) -> float:
        return self.sigmas[index + 1] - self.sigmas[index]

    def _eps(self, index: int, called_in: torch.dtype) -> Eps:
        sigma = self.sigmas[index]

        def eps(x: Tensor) -> Tensor:
            return (x - self.denoise(x.to(called_in), sigma).to(x.dtype)) / sigma

        return eps


def step(eps: Eps, x: Tensor, y: Tensor, shift: float, mix: float, *, swapped: bool) -> Pair:
    """One step of the pair; ``shift`` = sigma' - sigma; ``swapped``: the second chain moves first."""
    if swapped:
        y = y + shift * eps(x)
        x = x + shift * eps(y)
    else:
        x = x + shift * eps(y)
        y = y + shift * eps(x)
    x = mix * x + (1 - mix) * y
    y = mix * y + (1 - mix) * x
    return x, y


def undo(eps: Eps, x: Tensor, y: Tensor, shift: float, mix: float, *, swapped: bool) -> Pair:
    """The pair that :func:`step` made this of."""
    y = (y - (1 - mix) * x) / mix
    x = (x - (1 - mix) * y) / mix
    if swapped:
        x = x - shift * eps(y)
        y = y - shift * eps(x)
    else:
        y = y - shift * eps(x)
        x = x - shift * eps(y)
    return x, y


def undo_with_gradient(
    eps: Eps, pair: Pair, gradients: Pair, shift: float, mix: float, *, swapped: bool
) -> tuple[Pair, Pair]:
    """(the pair that :func:`step` made this of, the gradients there), two calls of the network in all."""
    (x, y), (gx, gy) = pair, gradients
    y = (y - (1 - mix) * x) / mix
    x = (x - (1 - mix) * y) / mix
    gx = gx + (1 - mix) * gy  # x' stands in y' too
    gx, gy = mix * gx, mix * gy + (1 - mix) * gx
    if swapped:
        x, gy = _move_back(eps, x, gx, y, gy, shift)
        y, gx = _move_back(eps, y, gy, x, gx, shift)
    else:
        y, gx = _move_back(eps, y, gy, x, gx, shift)
        x, gy = _move_back(eps, x, gx, y, gy, shift)
    return (x, y), (gx, gy)


def _move_back(eps: Eps, moved: Tensor, moved_gradient: Tensor, by: Tensor, by_gradient: Tensor, shift: float) -> Pair:
    """Undo moved = before + shift eps(by): (before, the gradient of ``by``)."""
    with torch.enable_grad():
        by = by.detach().requires_grad_()
        said = eps(by)
    (gradient,) = torch.autograd.grad(said, by, moved_gradient)
    return moved - shift * said.detach(), by_gradient + shift * gradient


class _ThroughInverse(torch.autograd.Function):
    """A walk of which the backward knows only where it ended."""

    @staticmethod
    def forward(ctx: Any, noise: Tensor, edict: Edict) -> Pair:
        start = edict.sigmas[0] * noise.to(edict.state)
        x, y = edict.forward(start, start, called_in=noise.dtype)
        ctx.edict = edict
        # The end in the state's own dtype: rounded to the noise's it could not be undone as well.
        ctx.save_for_backward(noise, x, y)
        # Outputs must be tensors of their own, also where no cast makes them so.
        return x.to(noise.dtype, copy=True), y.to(noise.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        noise, *end = ctx.saved_tensors
        edict: Edict = ctx.edict
        pair: Pair = (end[0], end[1])
        at = (gradients[0].to(edict.state), gradients[1].to(edict.state))
        for index in reversed(range(edict.steps)):
            eps = edict._eps(index, noise.dtype)
            pair, at = undo_with_gradient(eps, pair, at, edict._shift(index), edict.mix, swapped=index % 2 == 1)
        with torch.no_grad():
            sigma = edict.sigmas[0]
            apart = torch.maximum((pair[0] / sigma - noise).abs(), (pair[1] / sigma - noise).abs())
            if edict.off is not None:
                parts = apart.flatten(1).amax(1) / noise.abs().flatten(1).amax(1)
                edict.off.copy_(torch.fmax(edict.off, parts.to(edict.off.dtype)))
        return (edict.sigmas[0] * (at[0] + at[1])).to(noise.dtype), None
