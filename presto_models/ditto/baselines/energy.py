"""FreeDoM: after each step of the sampler, a step down the gradient of the controls' errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from presto_kernels import renoise
from presto_models.ditto.baselines.guided import GuidedWalk, without_checkpoints
from presto_models.ditto.control import Control
from presto_models.ditto.result import Optimized
from presto_models.ditto.setup import Request, Setup
from presto_models.ditto.shown import progress_bar
from presto_models.pipeline import PrestoPipeline

# presto-tiny, bf16, 10 s, DDIM in 10 steps, mean of two seeds.  Error without control and at 0.05, 0.1, 0.2: a melody
# (nats) 3.6, 1.28, 0.89, 0.37; the form ABBA 0.76, 0.033, 0.005, 0.001; 2 s of outpainting (squared latents) at 0.1 and
# 0.2: 0.47, 0.078, 0.049; loudness (dB^2, a ramp from -40 to -15) at 0.05, 0.1, 0.15: 76, 20, 3.5, 1.1.  What it costs:
# latents of RMS 0.47 become 0.5, 0.56 and, at 0.2, 0.68 for melody and form; at 0.4 (3 s given) the network's own error
# on them is 1.4 times (at noise 0.15) and 2.4 times (at 0.5) that on its own samples.
STRENGTH = 0.1


@dataclass(frozen=True)
class FreeDoMSettings:
    """How far FreeDoM goes, and how often.

    Args:
        strength: how far a guided step goes, as a share of how far the sampler's step went [our choice, measured; their
            code has 0.02 for faces by CLIP and, of the guidance term instead, 0.2 for style].
        repeats: how often each step in ``travel`` is made: between two of them x is noised back ("time travel").
        travel: (from, to) as shares of the walk, the steps that are repeated; theirs for style.
    """

    strength: float = STRENGTH
    repeats: int = 1
    travel: tuple[float, float] = (0.3, 0.6)

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength must be at least 0 and finite, got {self.strength}")
        if isinstance(self.repeats, bool) or not isinstance(self.repeats, int):
            raise TypeError(f"repeats must be an int, got {type(self.repeats).__name__}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}")
        if len(self.travel) != 2 or not 0 <= self.travel[0] <= self.travel[1] <= 1:
            raise ValueError(f"travel must be two shares of the walk, 0 <= from <= to <= 1, got {self.travel}")

    def times(self, index: int, steps: int) -> int:
        """How often step ``index`` of ``steps`` is made."""
        return self.repeats if self.travel[0] <= index / steps < self.travel[1] else 1


def freedom(
    pipeline: PrestoPipeline,
    controls: Control | Sequence[Control],
    *,
    settings: FreeDoMSettings | None = None,
    progress: bool = False,
    **request: Unpack[Request],
) -> Optimized:
    """Music led by the gradient of its controls' errors, in steps whose length does not depend on their units.

        g  = grad_x sum_k weight_k L_k(f_k(D(x; sigma)), y_k)
        x' = step(x) - eta g,        eta = strength |step(x) - x| / |g|

    | | is the root mean square over a sample.  eta is FreeDoM's of its released code, where the numerator is the size
    of the model's noise times what the step takes of it.  That is how far the sampler's step moves x; said so, it holds
    in EDM's terms and for every sampler [our reading].  A gradient that is zero or not finite changes nothing.

    Args: as for :func:`presto_models.ditto.optimize`; of ``options`` only the walk that makes the music is used.
    ``settings``: None: the defaults, measured on the shipped model.  Any sampler serves; each step's own first guess of
    the clean latents is what the gradient goes through, one call of the network and the decoder where a control hears.

    Time travel: x at sigma' is noised back to sigma, x + sqrt(sigma^2 - sigma'^2) eps, and the step made again.

    It is for walks of many steps.  A student's walk of two goes from 80 to 0.4 at once, and a share of that is far more
    than what is left: on presto-tiny-ls the error of a loudness ramp rose from 98 to 684 dB^2.

    Raises:
        TypeError, ValueError: something does not fit.

    Source: FreeDoM (Yu et al. 2023, 2303.09833), which 2401.12179, section 5.4, compares with.
    """
    settings = settings or FreeDoMSettings()
    setup = Setup.of(
        pipeline,
        controls,
        **without_checkpoints(request),
    )
    weights = torch.tensor([b.weight for b in setup.bound], device=setup.scene.device)[:, None]
    guided, steps = GuidedWalk(setup, weights), setup.far.sampling.steps
    noise = setup.noise()
    x = guided.sigmas[0] * noise
    offset = steps + 1  # of the seeds' noise: after all that a sampler may draw itself
    with progress_bar("FreeDoM", steps, progress) as advance:
        for index in range(steps):
            for again in range(settings.times(index, steps)):
                if again:
                    x = renoise(x, _back(*guided.sigmas[index : index + 2]), seed=setup.each, offset=offset)
                    offset += 1
                after, gradient = guided.step(x, index)
                x = after - settings.strength * _rms(after - x) * _unit(gradient)
            advance(index + 1, None)
    return setup.result(x, noise=noise, model_calls=guided.calls)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean((1, 2), keepdim=True).sqrt()


def _unit(gradient: Tensor) -> Tensor:
    """Of size 1 in each sample; zeros where that cannot be."""
    return (gradient / _rms(gradient)).nan_to_num(0.0, 0.0, 0.0)


def _back(sigma: float, sigma_next: float) -> float:
    """The noise that brings x at sigma' back to sigma."""
    return math.sqrt(sigma * sigma - sigma_next * sigma_next)
