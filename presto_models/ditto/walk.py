"""From unit noise to latents through a whole sampler, with the memory of one model call for the gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from presto_models.conditioning import Conditioning
from presto_models.diffusion import dynamic_threshold
from presto_models.engine import Engine, Plan

LARGEST = 4.65  # of |latents| / sigma_data in held-out music (41,463 latents of 32 channels: 2.323 at sigma_data 0.5)


class Walk:
    """``walk(noise) -> x``: unit noise ``[B, N, C]`` to what the DiT works on, differentiable.

    x_T = sigma_0 noise, then every step of the plan's sampler; noise added between steps is that of ``seeds``, so the
    same noise gives the same music.  Each call of the network is one gradient checkpoint (Chen et al. 2016,
    1604.06174), as DITTO has it (2401.12179, section 3.3): a backward pass holds the activations of one call and the T
    latents between calls, for one more forward of each.  Modulation, rotary tables and the text's keys and values are
    computed here, once.

    Args:
        seeds: int64 ``[B]`` on the engine's device.
        x_max: thresholds what the network says at each call (:func:`presto_models.dynamic_threshold`); None: nothing.
        checkpointed: False keeps every activation: more memory, a quarter less time.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        conditioning: Conditioning,
        seeds: Tensor,
        *,
        x_max: float | None = None,
        checkpointed: bool = True,
    ) -> None:
        self.engine, self.plan, self.seeds = engine, plan, seeds
        self.x_max, self.checkpointed = x_max, checkpointed
        self.denoise = engine.prepare(plan, conditioning)

    def __call__(self, noise: Tensor) -> Tensor:
        x = self.plan.sampling.sigmas[0] * noise
        for index in range(self.plan.sampling.steps):
            x = self.engine.step(self.plan, self.call, x, index, self.seeds)
        return x

    def call(self, x: Tensor, *levels: float) -> Tensor:
        """One call of the network, guided and thresholded as the walk is."""
        if not (self.checkpointed and torch.is_grad_enabled()):
            return self._call(x, *levels)
        # Nothing random is in it, and a CUDA graph refuses to have the generator's state read.
        return checkpoint(self._call, x, *levels, use_reentrant=False, preserve_rng_state=False)

    def _call(self, x: Tensor, *levels: float) -> Tensor:
        x0 = self.denoise(x, *levels)
        return x0 if self.x_max is None else dynamic_threshold(x0, self.x_max)
