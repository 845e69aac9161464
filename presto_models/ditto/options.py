"""How an optimisation goes, as frozen data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from presto_models.diffusion.sampling import FEW_STEP
from presto_models.ditto.walk import LARGEST
from presto_models.engine import Plan
from presto_models.pipeline import PrestoPipeline


@dataclass(frozen=True)
class DittoOptions:
    """Adam on the starting noise, and the walk it goes through.

    Args:
        steps: of Adam, at most; the paper's are 70, and 150 for melody and structure (2401.12179, section 5.1).
        learning_rate: the paper's; more was unstable there.
        sampler, sampling_steps, guidance, rho: of the walk that makes the music; None: those of :meth:`completed`.
        surrogate_steps: None: the gradient goes through that walk itself (DITTO).  M: it goes through a walk of M
            steps, and the music is made with ``sampling_steps`` from the noise found (DITTO-2, 2405.20289).
        full_depth: run every block at every step, whatever the checkpoint's layer schedule says.
        dynamic_threshold: of what the network says, for the sampler ``"ddim"``, as in the paper.
        x_max: of the threshold; None: 4.65 sigma_data, the largest magnitude in held-out music.
        checkpointed: one gradient checkpoint a model call; False: every activation is kept.
    """

    steps: int = 70
    learning_rate: float = 5e-3
    sampler: str | None = None
    sampling_steps: int | None = None
    guidance: float | None = None
    rho: float | None = None
    surrogate_steps: int | None = None
    full_depth: bool = False
    dynamic_threshold: bool = True
    x_max: float | None = None
    checkpointed: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "sampling_steps", "surrogate_steps"):
            value = getattr(self, name)
            if value is None and name != "steps":
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
            if value < (0 if name == "steps" else 1):
                raise ValueError(f"{name} must be at least {0 if name == 'steps' else 1}, got {value}")
        for name in ("learning_rate", "x_max"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {value}")

    def completed(self, pipeline: PrestoPipeline) -> DittoOptions:
        """These options with what is None put in its place, for a checkpoint.

        A student of few steps is walked as it was distilled, its gradient through one step (DITTO-2).  Any other model
        is walked by DDIM in 20 steps, the gradient through all of them (the paper's setting).
        """
        own = pipeline.config.sampling
        student = own.sampler in FEW_STEP
        sampler = self.sampler or (own.sampler if student else "ddim")
        steps = self.sampling_steps or (own.steps if sampler == own.sampler else 20)
        x_max = None
        if sampler == "ddim" and self.dynamic_threshold:
            x_max = self.x_max or LARGEST * pipeline.config.sigma_data
        surrogate = self.surrogate_steps
        if surrogate is None and student and sampler == own.sampler:
            surrogate = 1
        if surrogate is not None and surrogate >= steps:
            surrogate = None  # the walk itself
        return replace(self, sampler=sampler, sampling_steps=steps, x_max=x_max, surrogate_steps=surrogate)

    def plans(self, pipeline: PrestoPipeline, seconds: float, batch: int, *, stereo: bool = False) -> tuple[Plan, Plan]:
        """(the walk the gradient goes through, the walk that makes the music), of completed options."""

        def plan(steps: int | None) -> Plan:
            return pipeline.plan(
                seconds,
                batch=batch,
                steps=steps,
                guidance=self.guidance,
                sampler=self.sampler,
                rho=self.rho,
                schedule=None if self.full_depth else "own",
                stereo=stereo,
            )

        made = plan(self.sampling_steps)
        return (made if self.surrogate_steps is None else plan(self.surrogate_steps)), made
