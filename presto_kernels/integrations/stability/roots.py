"""The modules that are called once a step, and what of their arguments a prompt decides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from presto_kernels.integrations.swapping import Accelerated

_EMBEDDINGS = ("to_cond_embed", "to_global_embed", "to_prepend_embed")
OF_THE_PROMPT = ("context", "local_add_cond", "modular_local_cond", "padding_mask")


class FusedTransformer(Accelerated):
    """``ContinuousTransformer``, which is left as it is."""

    def forward(self, x: Tensor, *more: Any, **given: Any) -> Any:
        if more or torch.compiler.is_compiling():
            return super().forward(x, *more, **given)
        with self._presto.call_with(flattened(given.get(name) for name in OF_THE_PROMPT)):
            return super().forward(x, **given)


class FusedDiT(Accelerated):
    """``DiffusionTransformer``, which is left as it is; everything but x and t is the prompt's."""

    def forward(self, x: Tensor, t: Tensor, *more: Any, **given: Any) -> Any:
        if more or given.get("cfg_dropout_prob") or torch.compiler.is_compiling():  # dropout draws anew at every call
            return super().forward(x, t, *more, **given)
        embeddings = (self.to_timestep_embed, *(getattr(self, name) for name in _EMBEDDINGS if hasattr(self, name)))
        with self._presto.call_with(flattened(given.values()), () if self.training else (t,), embeddings):
            return super().forward(x, t, **given)


class FusedConstant(Accelerated):
    """A projection of the prompt."""

    def forward(self, x: Tensor) -> Tensor:
        return self._presto.constant(
            (id(self), "projection"), x, (self,), lambda: super(FusedConstant, self).forward(x)
        )


class FusedModulation(Accelerated):
    """An embedding of the timestep, or of it and the prompt."""

    def forward(self, x: Tensor) -> Any:
        return self._presto.modulation(
            (id(self), "modulation"), x, (self,), lambda: super(FusedModulation, self).forward(x)
        )


def flattened(values: Any) -> tuple[object, ...]:
    """What lies in dictionaries and lists beside the rest, so that each tensor is known by itself."""
    flat: list[object] = []
    for value in values:
        if isinstance(value, dict):
            flat += [*value.keys(), *flattened(value.values())]
        elif isinstance(value, list | tuple):
            flat += flattened(value)
        else:
            flat.append(value)
    return tuple(flat)
