"""The ways to control a model, by name: what a row may be measured with.  Cheap ones first, as they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from presto_models.ditto import Control, DittoOptions, Optimized, optimize
from presto_models.ditto.adaptor import adaptor_guided
from presto_models.ditto.baselines import (
    DoodlSettings,
    FreeDoMSettings,
    GuidanceGradientsSettings,
    MultiDiffusionSettings,
    doodl,
    freedom,
    guidance_gradients,
    multidiffusion,
    naive_masking,
)
from presto_models.metrics.control.tasks import PAINTING, TASKS
from presto_models.pipeline import PrestoPipeline


@dataclass(frozen=True)
class Method:
    """``call(pipeline, controls, *, prompt, seconds, seed, options, ...)``, as :func:`presto_models.ditto.optimize`.

    ``tasks``: those it can do.  ``searches``: it makes steps of Adam, of which the errors are known.  ``settings``: the
    class of the argument of that name; None: it has none.  ``adaptor``: it needs one.
    """

    call: Callable[..., Optimized]
    tasks: tuple[str, ...] = tuple(TASKS)
    searches: bool = False
    settings: Callable[..., Any] | None = None
    adaptor: bool = False


def uncontrolled(
    pipeline: PrestoPipeline, controls: Control | Sequence[Control], *, options: DittoOptions, **rest: Any
) -> Optimized:
    """What the model makes of the same prompt and seed when it is left alone, measured by the controls."""
    return optimize(pipeline, controls, options=replace(options, steps=0, surrogate_steps=None), **rest)


METHODS: dict[str, Method] = {
    "none": Method(uncontrolled),
    "naive-masking": Method(naive_masking, PAINTING),
    "md": Method(multidiffusion, PAINTING, settings=MultiDiffusionSettings),
    "adaptor": Method(adaptor_guided, ("intensity", "melody"), adaptor=True),
    "guidance-gradients": Method(guidance_gradients, settings=GuidanceGradientsSettings),
    "freedom": Method(freedom, settings=FreeDoMSettings),
    "ditto-2": Method(optimize, searches=True),
    "ditto": Method(optimize, searches=True),
    "doodl": Method(doodl, searches=True, settings=DoodlSettings),
}
