"""How a walk from noise to latents goes, as frozen data: what a checkpoint says, and what a caller changes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from presto_kernels import renoise
from presto_models.diffusion.edm import karras_sigmas
from presto_models.diffusion.samplers import (
    added_sigma,
    check_gamma,
    ctm_jump,
    ctm_levels,
    dpmpp_2s_sigmas,
    sample_ctm,
    sample_ddim,
    sample_dpmpp_2s,
    sample_heun,
    sample_pingpong,
)

SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "heun": sample_heun,
    "dpmpp_2s": sample_dpmpp_2s,
    "ddim": sample_ddim,
    "pingpong": sample_pingpong,
    "ctm": sample_ctm,
}
FEW_STEP = ("pingpong", "ctm")  # samplers of students: their last call must not be at sigma_min, where it does nothing


@dataclass(frozen=True)
class Sampling:
    """Which sampler, how many of its steps, over which noise levels, with how much guidance.

    Args:
        sampler: ``"heun"``, ``"dpmpp_2s"``, ``"ddim"``, ``"pingpong"`` or ``"ctm"``.
        steps: of the solver.
        guidance: the scale of classifier-free guidance; 1 is none.
        sigma_min, sigma_max, rho, spacing: of :func:`presto_models.karras_sigmas`.
        gamma: how much of each level's noise ``"ctm"`` draws anew, from 0 to 1; see
            :func:`presto_models.diffusion.sample_ctm`.

    Raises:
        TypeError, ValueError: a value does not fit; the message names it.
    """

    sampler: str = "heun"
    steps: int = 40
    guidance: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    spacing: str = "endpoint"
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {self.sampler!r}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise TypeError(f"steps must be an int, got {type(self.steps).__name__}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if isinstance(self.guidance, bool) or not isinstance(self.guidance, (int, float)):
            raise TypeError(f"guidance must be a number, got {type(self.guidance).__name__}")
        if not math.isfinite(self.guidance) or self.guidance < 0:
            raise ValueError(f"guidance must be at least 0 and finite, got {self.guidance}")
        check_gamma(self.gamma)
        _ = self.sigmas  # checks the noise levels

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sampling:
        """The settings :meth:`to_dict` wrote; what is not given is the default."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and names, ready for JSON."""
        return asdict(self)

    def changed(
        self,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        rho: float | None = None,
    ) -> Sampling:
        """These settings with what is not None put in their place.

        Another sampler brings its own spacing: ``"interval"`` for those of few-step students, whose last call at
        sigma_min would do nothing, ``"endpoint"`` for the solvers.
        """
        changes: dict[str, Any] = {"steps": steps, "guidance": guidance, "rho": rho}
        if sampler is not None and sampler != self.sampler:
            changes |= {"sampler": sampler, "spacing": "interval" if sampler in FEW_STEP else "endpoint"}
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels, ``steps`` falling ones and then 0."""
        return karras_sigmas(
            self.steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho, spacing=self.spacing
        )

    @property
    def levels(self) -> tuple[float, ...]:
        """Every noise level the network is called at, in the order in which the sampler first asks for it."""
        return dpmpp_2s_sigmas(self.sigmas) if self.sampler == "dpmpp_2s" else self.sigmas[:-1]

    @property
    def targets(self) -> tuple[float, ...] | None:
        """Where the call at each of :attr:`levels` jumps to; None for samplers that name no target."""
        if self.sampler != "ctm":
            return None
        return tuple(ctm_levels(sigma_next, self.gamma)[0] for sigma_next in self.sigmas[1:])

    @property
    def model_calls(self) -> int:
        """How often the network is called; a guided call is one, of twice the batch."""
        return 2 * self.steps - 1 if self.sampler in ("heun", "dpmpp_2s") else self.steps

    def step(
        self,
        denoise: Callable[..., Tensor],
        x: Tensor,
        index: int,
        *,
        seed: Tensor | None,
        boundary_sigma: float = 0.0,
    ) -> Tensor:
        """Step ``index`` by itself: x at ``sigmas[index]`` to x at ``sigmas[index + 1]``.

        All steps in turn are bitwise what the sampler makes of all sigmas at once.

        Args:
            seed: int64 ``[B]`` on x's device, for the samplers that add noise; the others need none.
            boundary_sigma: of a consistency model's denoiser (:class:`presto_models.EDM`), which ping-pong asks for.
        """
        sigma, sigma_next = self.sigmas[index : index + 2]
        added = 0.0
        if self.sampler == "ctm":
            target, added = ctm_levels(sigma_next, self.gamma)
            x = ctm_jump(denoise, x, sigma, target)
        else:
            x = SAMPLERS[self.sampler](denoise, x, (sigma, sigma_next))
            if self.sampler == "pingpong" and index + 1 < self.steps:
                added = added_sigma(sigma_next, boundary_sigma)
        if added > 0:
            if seed is None:
                raise ValueError(f"seed must be given: sampler {self.sampler!r} adds noise between steps")
            x = renoise(x, added, seed=seed, offset=index + 1)
        return x
