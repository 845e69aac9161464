"""How an optimisation goes, as frozen data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from presto_models.diffusion.sampling import FEW_STEP
from presto_models.ditto.walk import LARGEST
from presto_models.engine import Plan
from presto_models.pipeline import PrestoPipeline

EVEN = 1000.0  # Karras' rho: noise levels almost even in ln sigma


@dataclass(frozen=True)
class DittoOptions:
    """Adam on the starting noise, and the walk it goes through.

    Args:
        steps: of Adam, at most; the paper's are 70, and 150 for melody and structure (2401.12179, section 5.1), at its
            own learning rate.
        learning_rate: the paper's is 0.005, since more was unstable there.  Ours takes more: 14 steps on presto-tiny
            (DDIM in 10 steps, one seed) brought loudness from 12.3 dB² to 3.5, 0.6 and 0.08 with 0.005, 0.015 and 0.04,
            the overlap of an outpainting from 0.58 to 0.49, 0.37 and 0.16, and the noise's deviation from 1 to 1.04 at
            most.
        sampler, sampling_steps, guidance, rho, spacing: of the walk that makes the music; None: see :meth:`completed`.
        surrogate_steps: None: the gradient goes through that walk itself (DITTO).  M: it goes through a walk of M
            steps, and the music is made with ``sampling_steps`` from the noise found (DITTO-2, 2405.20289).
        full_depth: run every block at every step, whatever the checkpoint's layer schedule says.
        dynamic_threshold: of what the network says, for the sampler ``"ddim"``, as in the paper.
        x_max: of the threshold; None: 4.65 sigma_data, the largest magnitude in held-out music.
        checkpointed: one gradient checkpoint a model call; False: every activation is kept.
    """

    steps: int = 40
    learning_rate: float = 0.03
    sampler: str | None = None
    sampling_steps: int | None = None
    guidance: float | None = None
    rho: float | None = None
    spacing: str | None = None
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

        Any model but a student of few steps is walked by DDIM in 20 steps with the checkpoint's guidance, the paper's
        setting.

        A student of ping-pong is walked by DDIM too, in two steps whose levels are even in ln sigma: 80, 0.41, 0 [our
        choice].  Ping-pong would lose the noise that was found: what the network says of it at 80 is drowned at 17.5 by
        new noise 35 times as strong.  On presto-tiny-ls, loudness of 10 s, 40 steps of Adam, two seeds: the squared
        error of the music went from 75 and 48 to 74 and 47 through ping-pong in four steps, to 8 through these two, to
        22 and 17 with one of them as the surrogate.  A consistency trajectory model keeps its own sampler, whose jumps
        are deterministic.
        """
        own = pipeline.config.sampling
        student = own.sampler in FEW_STEP
        sampler = self.sampler or ("ctm" if own.sampler == "ctm" else "ddim")
        few = student and sampler == "ddim"
        steps = self.sampling_steps or (own.steps if sampler == own.sampler else 2 if few else 20)
        x_max = None
        if sampler == "ddim" and self.dynamic_threshold and not student:
            x_max = self.x_max or LARGEST * pipeline.config.sigma_data
        surrogate = self.surrogate_steps
        if surrogate is not None and surrogate >= steps:
            surrogate = None  # the walk itself
        return replace(
            self,
            sampler=sampler,
            sampling_steps=steps,
            x_max=x_max,
            surrogate_steps=surrogate,
            rho=self.rho or (EVEN if few else None),
            spacing=self.spacing or ("interval" if few else None),
        )

    def plans(self, pipeline: PrestoPipeline, seconds: float, batch: int, *, stereo: bool = False) -> tuple[Plan, Plan]:
        """(the walk the gradient goes through, the walk that makes the music), of completed options."""

        def plan(steps: int | None) -> Plan:
            made = pipeline.plan(
                seconds,
                batch=batch,
                steps=steps,
                guidance=self.guidance,
                sampler=self.sampler,
                rho=self.rho,
                schedule=None if self.full_depth else "own",
                stereo=stereo,
            )

            if self.spacing is None:
                return made
            return replace(made, sampling=replace(made.sampling, spacing=self.spacing))

        far = plan(self.sampling_steps)
        return (far if self.surrogate_steps is None else plan(self.surrogate_steps)), far
