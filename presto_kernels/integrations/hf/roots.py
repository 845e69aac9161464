"""The models with cross-attention: what of their arguments a prompt decides.

Everything but the noisy latents and the time.  Flux, SD3 and DiT have none: their text changes from block to block.
"""

from __future__ import annotations

from typing import Any

import torch

from presto_kernels.integrations.hf.base import Fused
from presto_kernels.integrations.stability.roots import flattened

_TIMES = ("hidden_states", "timestep", "timestep_r")


class FusedRoot(Fused):
    """A model that is left as it is.

    _blocks: the name of its list of blocks.  _before_prompt: how many arguments come before the prompt's.
    """

    _blocks = "transformer_blocks"
    _before_prompt = 2  # latents, time

    def forward(self, *args: Any, **given: Any) -> Any:
        run = super().forward
        hooks_before = any(block._forward_pre_hooks for block in getattr(self, self._blocks))
        if torch.compiler.is_compiling() or hooks_before:  # a hook may change the text from step to step
            return run(*args, **given)
        of_prompt = (*args[self._before_prompt :], *(value for name, value in given.items() if name not in _TIMES))
        with self._presto.call_with(flattened(of_prompt)):
            return run(*args, **given)


class FusedAceStep(FusedRoot):
    _blocks = "layers"
    _before_prompt = 3  # and the reference time
