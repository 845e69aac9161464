"""One step of a walk together with the gradient of the controls' errors at its beginning."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from presto_models.ditto.baselines.known import Known
from presto_models.ditto.options import DittoOptions
from presto_models.ditto.setup import Request, Setup
from presto_models.ditto.walk import Walk


def without_checkpoints(request: Request) -> Request:
    """A gradient here goes through one call of the network, whose activations are kept rather than made twice."""
    options = request.get("options") or DittoOptions()
    return {**request, "options": replace(options, checkpointed=False)}


class GuidedWalk:
    """The walk that makes the music, step by step, with gradients.

    Args:
        weights: ``[controls, 1]``, what each error is multiplied by in the sum.
        known: latents that stand in every guess of the clean ones the sampler is given; the gradient is taken before.

    Attributes:
        calls: of the network so far, a guided one being one.
    """

    def __init__(self, setup: Setup, weights: Tensor, known: Known | None = None) -> None:
        self.setup, self.weights, self.known = setup, weights, known
        self.walk: Walk = setup.walk(setup.far)
        self.calls = 0

    @property
    def sigmas(self) -> tuple[float, ...]:
        return self.setup.far.sampling.sigmas

    def step(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """(x after step ``index`` of the sampler, the gradient of the weighted sum of errors by x before it).

        The errors are those of D(x; sigma), thresholded as the walk is: the step's own first call of the network, so
        that a gradient costs one backward pass and nothing more forward.  Both ``[B, N, C]``; of each sample by itself.
        """
        start = x.detach().requires_grad_()
        first: list[Tensor] = []

        def denoise(x: Tensor, *levels: float) -> Tensor:
            self.calls += 1
            with torch.set_grad_enabled(not first):
                x0 = self.walk.call(x, *levels)
            if not first:
                first.append(x0)
            return x0.detach() if self.known is None else self.known.put(x0.detach())

        setup = self.setup
        with torch.no_grad():
            after = setup.pipeline.engine.step(setup.far, denoise, start, index, setup.each)
        with torch.enable_grad():
            made = setup.scene.made(first[0])
            errors = torch.stack([bound.error(made).float() for bound in setup.bound])
            (gradient,) = torch.autograd.grad((self.weights * errors).sum(), start)
        return after, gradient
