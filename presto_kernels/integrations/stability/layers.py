"""The smaller layers of both codebases: the gated unit of the feedforward, and rotary angles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from presto_kernels.integrations.swapping import Accelerated
from presto_kernels.ops.activation.api import geglu, singlu, swiglu


class FusedGLU(Accelerated):
    """``GLU``: value act(gate), value the first half of the projection."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x.mT).mT if self.use_conv else self.proj(x)
        with self._presto.settings.running():
            return _unit(self.act)(x)


def _unit(act: nn.Module) -> Any:
    if isinstance(act, nn.SiLU):
        return swiglu
    if isinstance(act, nn.GELU) and act.approximate == "none":
        return geglu
    return singlu if type(act).__name__ == "Sin" else None


def glu_fits(module: Any) -> str | None:
    return None if _unit(module.act) else f"its gate goes through {type(module.act).__name__}"


class FusedRotary(Accelerated):
    """``RotaryEmbedding``: the angles of a length are computed once."""

    def forward_from_seq_len(self, seq_len: int) -> tuple[Tensor, Any]:
        original: Any = super()
        made = original.forward_from_seq_len
        if torch.compiler.is_compiling():
            return made(seq_len)
        inv_freq: Tensor = self.inv_freq
        key = (id(self), seq_len)
        return self._presto.table(key, (inv_freq,), lambda: made(seq_len))


def rotary_fits(module: Any) -> str | None:
    return None if module.scale is None else "it scales with the position (xpos)"
