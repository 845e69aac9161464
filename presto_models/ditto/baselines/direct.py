"""DOODL (Wallace et al. 2023, 2303.13703): the starting noise optimised through EDICT's invertible walk.

Beside DITTO: the walk is :class:`presto_models.ditto.baselines.edict.Edict`, which is differentiated by undoing it
instead of by checkpoints, and the noise is kept where noise is.  A step is, with g the gradient of the mean error of
both chains with respect to the noise that both begin at,

    noise = descended(noise, g)                    Adam, or gradient descent with momentum
    noise = noise + perturbation eps               eps new at each step
    noise = noise ||noise_0|| / ||noise||          of each sample

Where the numbers come from: tied chains, momentum 0.9, clipping, perturbation 1e-4, renormalisation, p = 0.93 and the
error taken on both chains are the defaults of the authors' code.  There the learning rate is a factor before each loss
and differs from loss to loss; DITTO's comparison (2401.12179, section 5.2) says only that DOODL had DITTO's own, noise
injection and renormalisation.  That Adam takes the step (whose first moment is the momentum) is our choice: it
is what makes one learning rate mean the same for every control.  EDICT walks over Stable Diffusion's range of noise
levels, for which p was chosen, and not over the checkpoint's: see :mod:`presto_models.ditto.baselines.edict` for what
happens there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal, Unpack, get_args

import torch
from torch import Tensor

from presto_kernels import renoise
from presto_models.ditto.baselines.edict import MIX, Edict
from presto_models.ditto.control import Bound, Control
from presto_models.ditto.options import DittoOptions
from presto_models.ditto.result import Optimized
from presto_models.ditto.scene import Scene
from presto_models.ditto.search import Search
from presto_models.ditto.setup import Request, Setup
from presto_models.ditto.shown import progress_bar
from presto_models.ditto.solver import StepReport, first_reached, run
from presto_models.pipeline import PrestoPipeline

Optimizer = Literal["adam", "momentum"]
State = Literal["float32", "float64"]
RANGE = (0.03, 14.6)  # of sqrt((1 - a) / a), a Stable Diffusion's cumulative alphas: betas 0.00085 to 0.012, 1000 steps
PERTURBATIONS = 1 << 20  # offset of the first of these draws, far from those of any sampler


@dataclass(frozen=True)
class DoodlSettings:
    """What DOODL has that DITTO has not.

    Args:
        optimizer: ``"adam"``; or ``"momentum"``, the authors': b = momentum b + clip(learning_rate g),
            noise = noise - b, whose learning rate has to fit the control.
        momentum, clip: of ``"momentum"``; ``clip`` is the largest element of a step before momentum, None: no limit.
        renormalise: keep each sample's noise at the norm it began with.
        perturbation: standard deviation of the noise added at each step, drawn from the sample's seed; 0: none.
        both_chains: minimise the mean error of the two chains, as the authors do, for one decoding more; False: that
            of the chain that makes the music.  What is reported, and what thresholds look at, is the music either way.
        mix: p of EDICT.
        noise_range: the lowest and the highest noise level, in standard deviations of the data; None: the checkpoint's.
        state: of the pair; float32 is undone less exactly.
    """

    optimizer: Optimizer = "adam"
    momentum: float = 0.9
    clip: float | None = 1e-3
    renormalise: bool = True
    perturbation: float = 1e-4
    both_chains: bool = True
    mix: float = MIX
    noise_range: tuple[float, float] | None = RANGE
    state: State = "float64"

    def __post_init__(self) -> None:
        for name, known in (("optimizer", get_args(Optimizer)), ("state", get_args(State))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be from 0 to below 1, got {self.momentum}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be above 0 and finite, or None; got {self.clip}")
        if not 0 <= self.perturbation < math.inf:
            raise ValueError(f"perturbation must be at least 0 and finite, got {self.perturbation}")
        if not 0 < self.mix <= 1:
            raise ValueError(f"mix must be above 0 and at most 1, got {self.mix}")
        if self.noise_range is not None and not 0 < self.noise_range[0] < self.noise_range[1] < math.inf:
            raise ValueError(f"noise_range must be two rising levels above 0, or None; got {self.noise_range}")


class DoodlSearch(Search):
    """A :class:`Search` whose errors may be those of both chains and whose step is DOODL's."""

    walk: Edict

    def __init__(
        self,
        walk: Edict,
        scene: Scene,
        bound: Sequence[Bound],
        noise: Tensor,
        *,
        seeds: Tensor,
        settings: DoodlSettings,
        steps: int,
        learning_rate: float,
    ) -> None:
        super().__init__(walk, scene, bound, noise, steps=steps, learning_rate=learning_rate)
        self.settings, self.seeds, self.learning_rate = settings, seeds, learning_rate
        if settings.optimizer == "momentum":
            self.optimizer = torch.optim.SGD([self.noise], lr=1.0, momentum=settings.momentum)
        self.norm = _norm(noise)

    def evaluate(self) -> tuple[Tensor, Tensor]:
        """The errors of the chain that makes the music, and the gradient of what is minimised."""
        x, y = self.walk.pair(self.noise)
        errors = self.errors(x)
        minimised = (errors + self.errors(y)) / 2 if self.settings.both_chains else errors
        (gradient,) = torch.autograd.grad((self.weights * minimised).sum(), self.noise)
        return errors.detach(), gradient

    def move(self, gradient: Tensor) -> None:
        settings = self.settings
        if settings.optimizer == "momentum":
            gradient = self.learning_rate * gradient
            if settings.clip is not None:
                gradient = gradient.clamp(-settings.clip, settings.clip)
        super().move(gradient)
        if settings.perturbation > 0:
            offset = (PERTURBATIONS + self.done).expand(self.seeds.shape)
            self.noise.copy_(renoise(self.noise, settings.perturbation, seed=self.seeds, offset=offset))
        if settings.renormalise:
            self.noise.mul_(self.norm / _norm(self.noise))


def doodl(
    pipeline: PrestoPipeline,
    controls: Control | Sequence[Control],
    *,
    settings: DoodlSettings | None = None,
    callback: Callable[[StepReport], bool | None] | None = None,
    progress: bool = False,
    **request: Unpack[Request],
) -> Optimized:
    """Music for a prompt that follows its controls, by DOODL.

    It wants about 20 sampling steps or more; where the two chains end apart a warning says so.

    Args:
        controls, prompt, seconds, seed, tags, num_samples, stereo, callback, progress: as for
            :func:`presto_models.ditto.optimize`.
        options: its steps, learning rate, number of sampling steps (None: 20, at least 2), guidance, rho and spacing
            (None: the checkpoint's and "endpoint", of a student too), depth and threshold are used.  The sampler is
            DDIM's, in EDICT's two chains, and there is no surrogate; nothing is stored between calls, whatever
            ``checkpointed`` says.
        settings: see :class:`DoodlSettings`; None: its defaults.

    The music is the first chain's.  ``before`` in the outcomes is DDIM's in one chain, from the same noise: what
    :func:`presto_models.ditto.optimize` begins at.  ``model_calls`` are 2 per sampling step, the calls forward of one
    optimisation step; the backward makes as many again, each with its own backward, where DITTO's has half of both.

    Raises:
        TypeError, ValueError: something does not fit; controls are checked before the first step.
        ArithmeticError: every sample's error was NaN or infinite; or EDICT could not be undone (the noise came back
            changed by more than 1 % of its largest magnitude), so that the gradients were of another walk.
    """
    options, settings = request.get("options") or DittoOptions(), settings or DoodlSettings()
    if options.sampler not in (None, "ddim"):
        raise ValueError(f"options.sampler must be 'ddim' (EDICT is DDIM in two chains), got {options.sampler!r}")
    if options.surrogate_steps is not None:
        raise ValueError(f"options.surrogate_steps must be None: DOODL has no surrogate, got {options.surrogate_steps}")
    if options.sampling_steps == 1:
        raise ValueError("options.sampling_steps must be at least 2: EDICT's second chain would stay noise, got 1")
    options = replace(
        options,
        sampler="ddim",
        sampling_steps=options.sampling_steps or 20,
        rho=options.rho or pipeline.config.sampling.rho,
        spacing=options.spacing or "endpoint",
        checkpointed=False,
    )
    asked: Request = {**request, "options": options}
    setup = Setup.of(pipeline, controls, **asked)
    options, sampling = setup.options, setup.far.sampling
    if settings.noise_range is not None:
        lowest, highest = (level * pipeline.config.sigma_data for level in settings.noise_range)
        sampling = replace(sampling, sigma_min=lowest, sigma_max=highest)
    through = Edict(
        setup.walk(replace(setup.far, sampling=sampling)).call,
        sampling.sigmas,
        mix=settings.mix,
        state=getattr(torch, settings.state),
    )
    search = DoodlSearch(
        through,
        setup.scene,
        setup.bound,
        setup.noise(),
        seeds=setup.each,
        settings=settings,
        steps=options.steps,
        learning_rate=options.learning_rate,
    )
    with progress_bar("optimising", options.steps, progress) as advance:
        took = run(search, callback, advance)
    _check_undone(through)
    history = search.history[: int(search.done)].cpu()
    with torch.no_grad():
        x, y = through.pair(search.best_noise)
    _check_together(x, y, pipeline.config.sigma_data, through)
    return setup.result(
        x,
        noise=search.best_noise,
        history=history,
        steps_to_threshold=first_reached(history, search),
        seconds_per_step=median(took) if took else None,
        model_calls=through.model_calls,
    )


def _norm(noise: Tensor) -> Tensor:
    """``[B, 1, 1]``."""
    return noise.detach().flatten(1).norm(dim=1)[:, None, None]


def _check_undone(walk: Edict) -> None:
    off = None if walk.off is None else float(walk.off.nan_to_num(0.0).max())
    if off is not None and off > 0.01:
        raise ArithmeticError(
            f"EDICT came back to another noise, {off:.2g} of its largest magnitude away: rounding of {walk.state} was "
            f"enlarged {walk.amplification:.3g} times by the mixing alone; use state 'float64' or fewer sampling steps"
        )


def _check_together(x: Tensor, y: Tensor, sigma_data: float, walk: Edict) -> None:
    """A warning where the chains differ by more than music does from silence: neither is music then."""
    apart = float((x - y).flatten(1).std(dim=1).max())
    if not apart <= sigma_data:
        warnings.warn(
            f"EDICT's two chains ended {apart:.2g} apart, where latents have a standard deviation of {sigma_data:g}: "
            f"give more sampling steps than {walk.steps}, or a mix below {walk.mix:g}",
            stacklevel=3,
        )
