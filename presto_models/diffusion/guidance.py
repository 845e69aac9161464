"""Classifier-free guidance, and the denoiser a sampler walks with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from presto_kernels import LayerSchedule
from presto_models.conditioning import Conditioning
from presto_models.diffusion.edm import EDM
from presto_models.dit import DiT
from presto_models.precomputed import Precomputed, Step, TextCache


def classifier_free(denoise: Callable[..., Tensor], scale: float) -> Callable[..., Tensor]:
    """The guided denoiser D_0 + scale (D_c - D_0) (Ho & Salimans 2022, 2207.12598), one call of twice the batch.

    ``denoise`` takes ``[2B, N, C]``, the first half conditional and the second not (:meth:`Conditioning.with_null`),
    and the noise level, or both of a jump.
    """

    def guided(x: Tensor, *levels: float) -> Tensor:
        conditional, unconditional = denoise(torch.cat((x, x)), *levels).chunk(2)
        return torch.lerp(unconditional, conditional, scale)

    return guided


class ScheduledDenoiser:
    """``denoise(x, sigma)``, or ``denoise(x, sigma, sigma_to)``, for the samplers: what does not depend on x is
    computed here, once.

    Args:
        edm: the denoiser; its ``dit`` is a :class:`presto_models.DiT`.
        conditioning: B samples of text.
        sigmas: every noise level a sampler will ask for (zeros are passed over): the sampler's own sigmas, or
            :func:`presto_models.dpmpp_2s_sigmas` of them.  Another one is served too, at the price of its own
            modulation.
        sigma_to: for a model that takes it (``config.takes_sigma_to``), the level each of ``sigmas`` jumps to; None: 0,
            the clean latents, which is also what ``denoise(x, sigma)`` asks of such a model.
        schedule: how many blocks run at each noise level; None: all.
        guidance: the scale of classifier-free guidance.  1 costs one call of batch B, any other one call of 2B.  A
            model that takes the scale as an input is given it instead, with batch B.
        length: N, to have the rotary tables computed here too.

    No gradient reaches the weights or the conditioning through it; x's flows.
    """

    def __init__(
        self,
        edm: EDM,
        conditioning: Conditioning,
        *,
        sigmas: Sequence[float],
        sigma_to: Sequence[float] | None = None,
        schedule: LayerSchedule | None = None,
        guidance: float = 1.0,
        length: int | None = None,
    ) -> None:
        self._dit = cast(DiT, edm.dit)
        config = self._dit.config
        schedule = LayerSchedule.full(config.num_blocks, keep_last=config.keep_last) if schedule is None else schedule
        config.check_schedule(schedule)
        self.edm, self.schedule, self.length = edm, schedule, length
        self.guidance_input = float(guidance) if config.takes_guidance else None
        guided = guidance != 1 and not config.takes_guidance
        self.conditioning = conditioning.with_null() if guided else conditioning
        self._denoise = classifier_free(self._plain, guidance) if guided else self._plain
        if sigma_to is not None and len(sigma_to) != len(sigmas):
            raise ValueError(f"sigma_to must have one entry per sigma, {len(sigmas)}, got {len(sigma_to)}")
        targets = (None,) * len(sigmas) if sigma_to is None else sigma_to
        jumps = dict.fromkeys(self._jump(s, to) for s, to in zip(sigmas, targets, strict=True) if s > 0)
        self._precomputed = self._precompute(tuple(jumps))
        self._steps = dict(zip(jumps, self._precomputed.steps, strict=True))

    def __call__(self, x: Tensor, sigma: float, sigma_to: float | None = None) -> Tensor:
        """D ``[B, N, C]`` at noise level ``sigma``; both levels are host numbers."""
        return self._denoise(x, *self._jump(sigma, sigma_to))

    def _plain(self, x: Tensor, *jump: float) -> Tensor:
        return self.edm(x, jump[0], self.conditioning, precomputed=self._step(jump))

    def _jump(self, sigma: float, sigma_to: float | None) -> tuple[float, ...]:
        """What tells one call of the network from another: (sigma,), or (sigma, sigma_to) where it takes both."""
        if self._dit.config.takes_sigma_to:
            return float(sigma), float(sigma_to or 0)
        if sigma_to is not None:
            raise ValueError("sigma_to is for a model that takes it (config.takes_sigma_to), and this one does not")
        return (float(sigma),)

    def _step(self, jump: tuple[float, ...]) -> Step:
        step = self._steps.get(jump)
        return self._precompute((jump,), self._precomputed.text).step(0) if step is None else step

    def _precompute(self, jumps: Sequence[tuple[float, ...]], text: TextCache | None = None) -> Precomputed:
        sigmas = [jump[0] for jump in jumps]
        return self._dit.precompute(
            self.conditioning,
            sigmas,
            [self.schedule.budget(s) for s in sigmas],
            length=self.length,
            sigma_to=[jump[1] for jump in jumps] if self._dit.config.takes_sigma_to else None,
            guidance=self.guidance_input,
            text=text,
        )
