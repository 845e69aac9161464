"""Guidance gradients: FreeDoM's step with one fixed size, and known latents put into every guess of the clean ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch

from presto_models.ditto.baselines.guided import GuidedWalk, without_checkpoints
from presto_models.ditto.baselines.known import Known
from presto_models.ditto.control import Bound, Control
from presto_models.ditto.result import Optimized
from presto_models.ditto.setup import Request, Setup
from presto_models.ditto.shown import progress_bar
from presto_models.pipeline import PrestoPipeline

# presto-tiny, bf16, 10 s, DDIM in 10 steps, mean of two seeds; chosen with room to where it breaks, and so that the
# network's own error on the latents stays near that on its own samples (1.6 times for form, 1.2 for the others).
# Loudness (dB^2, a ramp from -40 to -15; 76 without control): 1.9 at 5e-5, 0.26 at 1e-4, 6.7 at 2e-4, 151 at 4e-4.
# Melody (nats; 3.6): 1.24 at 0.003, 0.73 at 0.01, 0.53 at 0.03, 0.44 at 0.1 with latents 1.5 times too large.  The form
# ABBA (0.76): 0.23 at 0.003, 0.031 at 0.01, 0.064 at 0.03.  Outpainting, which is met at any eta: behind 2 s given, the
# step from latent to latent at the cut is 4.7, 3.9 and 3.6 times an average one at 0, 0.1 and 0.2; behind 3 s the rest
# is 2, 7 and 17 % larger at 0.03, 0.1 and 0.3 than at 0.  Edges of a loop without reference are compared in the same
# units as latents; their eta is taken from there, not measured.
ETA = {"latents": 0.1, "edges": 0.1, "loudness": 5e-5, "melody": 0.01, "structure": 0.01}


@dataclass(frozen=True)
class GuidanceGradientsSettings:
    """``eta``: of every control; None: that of each control's kind, :data:`ETA`, measured on the shipped model for the
    errors in dB^2 (not the correlation), nats and squared latents."""

    eta: float | None = None

    def __post_init__(self) -> None:
        if self.eta is not None and not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be at least 0 and finite, or None, got {self.eta}")

    def of(self, bound: Bound) -> float:
        """eta for a control.

        Raises:
            ValueError: there is none for its kind.
        """
        if self.eta is None and bound.kind not in ETA:
            raise ValueError(
                f"eta must be given for control {bound.name}: a fixed step depends on the units of the error, and the "
                f"measured ones are for {', '.join(ETA)}, not for {bound.kind}"
            )
        return ETA[bound.kind] if self.eta is None else self.eta


def guidance_gradients(
    pipeline: PrestoPipeline,
    controls: Control | Sequence[Control],
    *,
    settings: GuidanceGradientsSettings | None = None,
    progress: bool = False,
    **request: Unpack[Request],
) -> Optimized:
    """Music led by the gradient of its controls' errors in steps of one fixed size, known latents in their place.

        x0 = D(x; sigma),   g = grad_x sum_k eta_k N C weight_k L_k(f_k(x0), y_k)
        x' = step(x) with M z_ref + (1 - M) x0 for its x0;   x' <- x' - (1 - M) g

    The second line is the data-consistency step, for controls that decide latents, whose f, a mask, is linear: the
    nearest x0 with f(x0) = y.  It is done in every call of the network and the gradient does not move the known part,
    so that the reference ends in its place.  Without such a control M is 0.

    N C, the numbers a sample has, is there because errors are means, whose gradient by one number falls as there are
    more of them: so eta need not change with the length [our choice, as are the values of :data:`ETA`].

    Args: as for :func:`presto_models.ditto.optimize`; of ``options`` only the walk that makes the music is used.  Any
    sampler serves.  A gradient that is not finite changes nothing in its sample.

    Raises:
        TypeError, ValueError: something does not fit; a control for whose kind eta must be given is named.

    Source: guidance gradients (Levy et al. 2023, 2311.00613), as 2401.12179, section 5.4, has it; the consistency step
    as in CQT-Diff (Moliner et al. 2023, 2210.15228).
    """
    settings = settings or GuidanceGradientsSettings()
    setup = Setup.of(
        pipeline,
        controls,
        **without_checkpoints(request),
    )
    numbers = math.prod(setup.noise_shape[1:])
    etas = [settings.of(b) * numbers * b.weight for b in setup.bound]
    known = Known.of(setup.bound)
    guided = GuidedWalk(setup, torch.tensor(etas, device=setup.scene.device)[:, None], known)
    steps, noise = setup.far.sampling.steps, setup.noise()
    x = guided.sigmas[0] * noise
    with progress_bar("guidance gradients", steps, progress) as advance:
        for index in range(steps):
            x, gradient = guided.step(x, index)
            usable = gradient.isfinite().flatten(1).all(1)[:, None, None]
            if known is not None:
                usable = usable & ~known.where
            x = x - torch.where(usable, gradient, 0)
            advance(index + 1, None)
    return setup.result(x, noise=noise, model_calls=guided.calls)
