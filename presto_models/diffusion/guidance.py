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
from presto_models.precomputed import Step


def classifier_free(denoise: Callable[[Tensor, float], Tensor], scale: float) -> Callable[[Tensor, float], Tensor]:
    """The guided denoiser D_0 + scale (D_c - D_0) (Ho & Salimans 2022, 2207.12598), one call of twice the batch.

    ``denoise`` takes ``[2B, N, C]``, the first half conditional and the second not (:meth:`Conditioning.with_null`).
    """

    def guided(x: Tensor, sigma: float) -> Tensor:
        conditional, unconditional = denoise(torch.cat((x, x)), sigma).chunk(2)
        return torch.lerp(unconditional, conditional, scale)

    return guided


class ScheduledDenoiser:
    """``denoise(x, sigma)`` for the samplers: what does not depend on x is computed here, once.

    Args:
        edm: the denoiser; its ``dit`` is a :class:`presto_models.DiT`.
        conditioning: B samples of text.
        sigmas: every noise level a sampler will ask for (zeros are passed over): the sampler's own sigmas, or
            :func:`presto_models.dpmpp_2s_sigmas` of them.  Another one is served too, at the price of its own
            modulation.
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
        schedule: LayerSchedule | None = None,
        guidance: float = 1.0,
        length: int | None = None,
    ) -> None:
        self._dit = cast(DiT, edm.dit)
        config = self._dit.config
        schedule = LayerSchedule.full(config.num_blocks, keep_last=config.keep_last) if schedule is None else schedule
        if (schedule.num_blocks, schedule.keep_last) != (config.num_blocks, config.keep_last):
            raise ValueError(
                f"schedule must be made for the model's {config.num_blocks} blocks and keep_last {config.keep_last}, "
                f"got {schedule.num_blocks} and {schedule.keep_last}"
            )
        self.edm, self.schedule, self.length = edm, schedule, length
        self.guidance_input = float(guidance) if config.takes_guidance else None
        guided = guidance != 1 and not config.takes_guidance
        self.conditioning = conditioning.with_null() if guided else conditioning
        self._denoise = classifier_free(self._plain, guidance) if guided else self._plain
        levels = tuple(dict.fromkeys(float(s) for s in sigmas if s > 0))
        self._precomputed = self._dit.precompute(
            self.conditioning,
            levels,
            [schedule.budget(s) for s in levels],
            length=length,
            guidance=self.guidance_input,
        )
        self._steps = dict(zip(levels, self._precomputed.steps, strict=True))

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """D ``[B, N, C]`` at noise level ``sigma``, a host number."""
        return self._denoise(x, sigma)

    def _plain(self, x: Tensor, sigma: float) -> Tensor:
        return self.edm(x, sigma, self.conditioning, precomputed=self._step(sigma))

    def _step(self, sigma: float) -> Step:
        step = self._steps.get(sigma)
        if step is not None:
            return step
        return self._dit.precompute(
            self.conditioning,
            (sigma,),
            (self.schedule.budget(sigma),),
            length=self.length,
            guidance=self.guidance_input,
            text=self._precomputed.text,
        ).step(0)
