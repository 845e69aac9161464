"""The gated units of ``FeedForward``: value act(gate), value the first half of the projection."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from presto_kernels.integrations.hf.base import Fused
from presto_kernels.integrations.modules import hooked
from presto_kernels.ops.activation.api import geglu, swiglu


class FusedSwiGLU(Fused):
    def forward(self, hidden_states: Tensor) -> Tensor:
        if hooked(self.activation):
            return self._pass_on("a hook on the activation", hidden_states)
        x = self.proj(hidden_states)
        with self._presto.settings.running():
            return swiglu(x)


class FusedGEGLU(Fused):
    def forward(self, hidden_states: Tensor, *more: Any, **given: Any) -> Tensor:
        if more or given:
            return self._pass_on("arguments that are no longer used", hidden_states, *more, **given)
        x = self.proj(hidden_states)
        with self._presto.settings.running():
            return geglu(x)


class FusedStableAudio3FeedForward(Fused):
    def forward(self, hidden_states: Tensor) -> Tensor:
        x = self.proj_in(hidden_states)
        with self._presto.settings.running():
            x = swiglu(x)
        return self.proj_out(x)


def swiglu_fits(module: Any) -> str | None:
    known = type(module.activation).__name__ == "SiLU"
    return None if known else f"its gate goes through {type(module.activation).__name__}"
