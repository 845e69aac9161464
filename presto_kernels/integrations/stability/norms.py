"""A norm module as the arguments of the ops that fuse it.

    LayerNorm(gamma, beta)              norm="layer"
    RMSNorm(gamma)                      norm="rms"
    DynamicTanh(alpha, gamma, beta)     norm="dyt"          gamma tanh(alpha x) + beta

All are known by their names, ``torch.nn.LayerNorm`` and ``RMSNorm`` too; ``force_fp32`` is what the ops do anyway.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from presto_kernels.integrations.swapping import Accelerated
from presto_kernels.ops.modulation.api import adaln_modulate

KINDS = {"LayerNorm": "layer", "RMSNorm": "rms", "DynamicTanh": "dyt"}


def kind(module: nn.Module) -> str | None:
    """``norm`` of a norm module, or None for a module that is none."""
    return KINDS.get(type(module).__name__)


def arguments(module: nn.Module) -> dict[str, Any]:
    """weight, bias, norm, eps (and alpha) of a norm module."""
    name = kind(module)
    weight, bias = (
        (module.weight, getattr(module, "bias", None))
        if isinstance(module, nn.LayerNorm | nn.RMSNorm)
        else (module.gamma, getattr(module, "beta", None))
    )
    given: dict[str, Any] = {"weight": weight, "bias": bias, "norm": name}
    if name == "dyt":
        return {**given, "alpha": module.alpha}
    return {**given, "eps": module.eps}


def hooked(*modules: nn.Module) -> bool:
    """Whether somebody listens to a module that a fused path would pass by."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules)


class FusedNorm(Accelerated):
    """A norm called by itself, in one pass."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2:
            return super().forward(x)
        with self._presto.settings.running():
            return adaln_modulate(x.reshape(1, -1, x.shape[-1]), None, None, **arguments(self)).view(x.shape)
