"""Norms: as arguments of the ops that fuse them, by themselves, and with AdaLN's modulation.

AdaLayerNormZero         shift, scale, gate, shift', scale', gate'                = linear(silu(emb))
SD35AdaLayerNormZeroX    the same, and shift'', scale'', gate'' of a second branch on the same norm
AdaLayerNormZeroSingle   shift, scale, gate
AdaLayerNormContinuous   scale, shift                                             (in this order)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from presto_kernels.integrations.hf.base import Fused
from presto_kernels.integrations.modules import class_name, hooked
from presto_kernels.ops.modulation.api import adaln_modulate

_KINDS = {
    "torch.nn.modules.normalization.LayerNorm": "layer",
    "torch.nn.modules.normalization.RMSNorm": "rms",
    "diffusers.models.normalization.FP32LayerNorm": "layer",
    "diffusers.models.normalization.RMSNorm": "rms",
    "diffusers.models.normalization.LpNorm": "l2",
    "diffusers.models.transformers.transformer_stable_audio3.StableAudio3RMSNorm": "rms",
}


def kind(norm: nn.Module) -> str | None:
    """``norm`` of the ops for a norm module, or None where they have none."""
    name = _KINDS.get(class_name(norm))
    if name is None or norm.eps is None or (name == "l2" and (norm.p, norm.dim) != (2, -1)):
        return None
    return name


def arguments(norm: nn.Module) -> dict[str, Any]:
    """weight, bias, norm and eps of a norm module."""
    weight = norm.gamma if hasattr(norm, "gamma") else getattr(norm, "weight", None)
    return {"weight": weight, "bias": getattr(norm, "bias", None), "norm": kind(norm), "eps": norm.eps}


def fit(*norms: nn.Module | None) -> str | None:
    """Why norms cannot be fused, or None."""
    unknown = [type(norm).__name__ for norm in norms if norm is not None and kind(norm) is None]
    return f"a norm is a {unknown[0]}" if unknown else None


def passed_by(*norms: nn.Module | None) -> str | None:
    """Why norms cannot be passed by in this call, or None."""
    return fit(*norms) or ("a hook on a norm" if hooked(*norms) else None)


def refusal(x: Tensor, *norms: nn.Module | None, conditioning: Tensor | None = None) -> str | None:
    """Why the seams of a stream x cannot be fused in this call, or None."""
    if x.dim() != 3:
        return "tokens that are not [B, N, D]"
    if conditioning is not None and torch.promote_types(x.dtype, conditioning.dtype) != x.dtype:
        return "conditioning in a wider dtype than the tokens"  # which the original's stream would take on
    return passed_by(*norms)


class FusedRMSNorm(Fused):
    """``RMSNorm`` called by itself: x / sqrt(mean(x^2) + eps) * weight + bias."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = arguments(self)["weight"]
        if weight is not None and weight.dtype != hidden_states.dtype:
            return self._pass_on("weights in another dtype, which the result would have", hidden_states)
        if hidden_states.dim() < 2 or len(getattr(self, "dim", (0,))) != 1:
            return self._pass_on("a norm over more than the last axis, or of a vector", hidden_states)
        rows = hidden_states.reshape(1, -1, hidden_states.shape[-1])
        with self._presto.settings.running():
            return adaln_modulate(rows, None, None, **arguments(self)).view(hidden_states.shape)


class _Modulated(Fused):
    """One norm, ``self.norm``, and a linear layer that makes the modulation."""

    def _modulate(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        with self._presto.settings.running():
            return adaln_modulate(x, scale, shift, **arguments(self.norm))

    def _modulation(self, emb: Any, dtype: torch.dtype | None = None) -> Tensor:
        """linear(silu(emb)), cast in between where a dtype is given; at a known timestep once."""

        def computed() -> Tensor:
            active = self.silu(emb)
            made: Tensor = self.linear(active if dtype is None else active.to(dtype))
            return made

        if hooked(self):
            return computed()
        layers = [self.silu, self.linear]
        if getattr(self, "emb", None) is not None:  # DiT's own embedding of the timestep, in every block
            layers.append(self.emb)
        made: Tensor = self._presto.modulation((id(self), dtype), emb, tuple(layers), computed)
        return made


class FusedAdaLayerNormZero(_Modulated):
    def forward(
        self,
        x: Tensor,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        hidden_dtype: torch.dtype | None = None,
        emb: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        reason = refusal(x, self.norm, conditioning=emb if self.emb is None else None)
        if reason is None and self.emb is not None and hidden_dtype != x.dtype:
            reason = "conditioning in another dtype than the tokens"
        if reason:
            return self._pass_on(reason, x, timestep, class_labels, hidden_dtype, emb)
        if self.emb is not None:
            emb = self.emb(timestep, class_labels, hidden_dtype=hidden_dtype)
        shift, scale, *others = self._modulation(emb).chunk(6, dim=1)
        gate, shift_mlp, scale_mlp, gate_mlp = others
        return self._modulate(x, scale, shift), gate, shift_mlp, scale_mlp, gate_mlp


class FusedAdaLayerNormZeroX(_Modulated):
    def forward(self, hidden_states: Tensor, emb: Tensor | None = None) -> tuple[Tensor, ...]:
        reason = refusal(hidden_states, self.norm, conditioning=emb)
        if reason:
            return self._pass_on(reason, hidden_states, emb)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, shift2, scale2, gate2 = self._modulation(emb).chunk(
            9, dim=1
        )
        h, h2 = self._modulate(hidden_states, scale, shift), self._modulate(hidden_states, scale2, shift2)
        return h, gate, shift_mlp, scale_mlp, gate_mlp, h2, gate2


class FusedAdaLayerNormZeroSingle(_Modulated):
    def forward(self, x: Tensor, emb: Tensor | None = None) -> tuple[Tensor, Tensor]:
        reason = refusal(x, self.norm, conditioning=emb)
        if reason:
            return self._pass_on(reason, x, emb)
        shift, scale, gate = self._modulation(emb).chunk(3, dim=1)
        return self._modulate(x, scale, shift), gate


class FusedAdaLayerNormContinuous(_Modulated):
    def forward(self, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
        reason = refusal(x, self.norm)  # the conditioning is cast to x's dtype
        if reason:
            return self._pass_on(reason, x, conditioning_embedding)
        scale, shift = self._modulation(conditioning_embedding, x.dtype).chunk(2, dim=1)
        return self._modulate(x, scale, shift)


def fits(module: Any) -> str | None:
    return fit(module.norm)
