"""The modules that are called once a step: what of their arguments a prompt decides, and what the timestep does.

Where there is cross-attention, a prompt decides everything but the noisy latents and the time.  Flux, SD3 and DiT have
none: their text changes from block to block, and only their modulation is the prompt's and the timestep's.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from presto_kernels.integrations.hf.base import Fused
from presto_kernels.integrations.stability.roots import flattened

_TIMESTEPS = ("timestep", "timestep_r")


class FusedRoot(Fused):
    """A model that is left as it is, with cross-attention."""

    def forward(self, *args: Any, **given: Any) -> Any:
        run = super().forward
        if torch.compiler.is_compiling() or self._may_vary():
            return run(*args, **given)
        named = dict(zip(_parameters(self._original.forward), args, strict=False)) | given
        timesteps = tuple(named[name] for name in _TIMESTEPS if name in named and not self.training)
        embeddings = tuple(module for name in _EMBEDDINGS if (module := getattr(self, name, None)) is not None)
        with self._presto.call_with(flattened(self._of_prompt(named)), timesteps, embeddings):
            return run(*args, **given)

    def _of_prompt(self, named: dict[str, Any]) -> list[Any]:
        return [value for name, value in named.items() if name not in ("hidden_states", *_TIMESTEPS)]

    def _may_vary(self) -> bool:
        """Whether a hook may change from step to step what the blocks are given."""
        return any(block._forward_pre_hooks for name in _BLOCKS for block in getattr(self, name, ()))


class FusedModulatedRoot(FusedRoot):
    """Without cross-attention: the modulation is made of the timestep and what stands beside it."""

    def _of_prompt(self, named: dict[str, Any]) -> list[Any]:
        return [named.get(name) for name in ("pooled_projections", "guidance", "class_labels")]


_BLOCKS = ("transformer_blocks", "single_transformer_blocks", "layers")
_EMBEDDINGS = (
    "cross_attention_proj", "global_proj", "timestep_proj",  # Stable Audio Open
    "to_cond_embed", "to_global_embed", "to_timestep_embed",  # Stable Audio 3
    "condition_embedder", "time_embed", "time_embed_r",  # ACE-Step
    "time_text_embed",  # Flux, SD3
)  # fmt: skip


@functools.cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a method's arguments, in their order."""
    return tuple(inspect.signature(forward).parameters)[1:]
