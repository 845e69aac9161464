"""Painting by putting the reference into the walk: naive masking, and MultiDiffusion's average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch

from presto_kernels import renoise
from presto_models.ditto.baselines.known import Known
from presto_models.ditto.control import Control
from presto_models.ditto.result import Optimized
from presto_models.ditto.setup import Request, Setup
from presto_models.ditto.shown import progress_bar
from presto_models.pipeline import PrestoPipeline


@dataclass(frozen=True)
class MultiDiffusionSettings:
    """``until``: the share of the walk, from its start, after whose steps the average is taken; 1.0 is the paper's MD,
    0.5 its MD-50, which leaves the model to itself for the second half."""

    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.until <= 1:
            raise ValueError(f"until must be from 0 to 1, got {self.until}")


def naive_masking(
    pipeline: PrestoPipeline,
    controls: Control | Sequence[Control],
    *,
    progress: bool = False,
    **request: Unpack[Request],
) -> Optimized:
    """Music whose known part is overwritten by the reference after every step.

        x <- M (z_ref + sigma' eps) + (1 - M) x        after the step to sigma'

    The reference ends exactly in its place; nothing makes the rest fit to it but what the model sees of it.

    Args: as for :func:`presto_models.ditto.optimize`; of ``options`` only the walk that makes the music is used.  The
    controls must all decide latents (:meth:`presto_models.ditto.Bound.known`).  eps is drawn anew after each step i,
    by the sample's seed at offset i + 1.  Any sampler serves.

    Raises:
        TypeError, ValueError: something does not fit; a control that decides no latents is named.

    Source: "naive masking" of 2401.12179, section 5.4, in EDM's terms.
    """
    setup = Setup.of(
        pipeline,
        controls,
        **request,
    )
    return _painted(setup, "naive masking", reference=1.0, until=1.0, progress=progress)


def multidiffusion(
    pipeline: PrestoPipeline,
    controls: Control | Sequence[Control],
    *,
    settings: MultiDiffusionSettings | None = None,
    progress: bool = False,
    **request: Unpack[Request],
) -> Optimized:
    """Music whose known part is the average of its own and the reference's after each step.

        x <- M (z_ref + sigma' eps + x) / 2 + (1 - M) x        after the steps of the first ``until`` of the walk

    Args: as for :func:`naive_masking`; ``settings``: None: MD, to the end.

    Raises:
        TypeError, ValueError: something does not fit; a control that decides no latents is named.

    Source: MultiDiffusion (Bar-Tal et al. 2023, 2302.08113), as 2401.12179, section 5.4, has it.
    """
    settings = settings or MultiDiffusionSettings()
    setup = Setup.of(
        pipeline,
        controls,
        **request,
    )
    return _painted(setup, "MultiDiffusion", reference=0.5, until=settings.until, progress=progress)


@torch.no_grad()
def _painted(setup: Setup, method: str, *, reference: float, until: float, progress: bool) -> Optimized:
    """The walk with that share of the noised reference in the known part, after the steps of its first ``until``."""
    known = Known.of_all(setup.bound, method)
    sampling, walk, noise = setup.far.sampling, setup.walk(setup.far), setup.noise()
    values = known.values.expand(setup.noise_shape).contiguous()
    x = sampling.sigmas[0] * noise
    with progress_bar(method, sampling.steps, progress) as advance:
        for index in range(sampling.steps):
            x = setup.pipeline.engine.step(setup.far, walk.call, x, index, setup.each)
            if index + 1 <= until * sampling.steps:
                there = renoise(values, sampling.sigmas[index + 1], seed=setup.each, offset=index + 1)
                x = torch.where(known.where, torch.lerp(x, there, reference), x)
            advance(index + 1, None)
    return setup.result(x, noise=noise, model_calls=sampling.model_calls)
