"""Guidance gradients: FreeDoM's step with one fixed size, and known latents put into every guess of the clean ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from presto_models.ditto.baselines.guided import GuidedWalk, without_checkpoints
from presto_models.ditto.baselines.known import Known
from presto_models.ditto.control import Bound, Control
from presto_models.ditto.options import DittoOptions
from presto_models.ditto.result import Optimized
from presto_models.ditto.setup import Setup
from presto_models.ditto.shown import progress_bar
from presto_models.pipeline import PrestoPipeline
from presto_models.text.tags import Tags

ETA = {"latents": 1.0, "loudness": 1e-3}


@dataclass(frozen=True)
class GuidanceGradientsSettings:
    """``eta``: of every control; None: that of each control's kind, :data:`ETA`, measured on the shipped model."""

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
    prompt: str | Sequence[str] = "",
    seconds: float = 10.0,
    seed: int | Sequence[int] | None = None,
    tags: Tags | Sequence[Tags | None] | None = None,
    num_samples: int = 1,
    stereo: bool = False,
    options: DittoOptions | None = None,
    settings: GuidanceGradientsSettings | None = None,
    progress: bool = False,
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
        prompt=prompt,
        seconds=seconds,
        seed=seed,
        tags=tags,
        num_samples=num_samples,
        stereo=stereo,
        options=without_checkpoints(options),
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
