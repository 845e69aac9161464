"""Layers for Hugging Face ``kernels``: each ``forward`` takes the place of the one of a layer that others define.

``kernelize`` gives a module of the model the ``forward`` of the layer here that its class was mapped to; ``self`` is
then the model's module, with its parameters.  So a layer has no state, no constructor and no other method; the
annotations say which members it reads.  Which layer is for which class, and an example: docs/hf-kernels.md.

Results have x's dtype unless said otherwise; arithmetic is fp32 and rounded once, where the plain layers of other
libraries round after every step.  All are differentiable, and ``torch.compile`` takes them without a graph break.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from presto_kernels.ops.activation.api import geglu, snake, swiglu
from presto_kernels.ops.modulation.api import adaln_modulate


def _normalized(x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str, eps: float, axes: int = 1) -> Tensor:
    """The last ``axes`` axes of x normalised as one."""
    rows = x.reshape(1, -1, x.shape[-axes:].numel())
    weight, bias = (None if t is None else t.flatten() for t in (weight, bias))
    return adaln_modulate(rows, None, None, weight=weight, bias=bias, norm=norm, eps=eps).view(x.shape)


def _modulated(norm: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``norm(x) * (1 + scale) + shift`` for diffusers' norms; scale and shift are [B, D]."""
    kind = "layer" if isinstance(norm, nn.LayerNorm) else "rms"
    return adaln_modulate(x, scale, shift, weight=norm.weight, bias=norm.bias, norm=kind, eps=norm.eps)


class LayerNorm(nn.Module):
    """``torch.nn.LayerNorm`` and diffusers' ``FP32LayerNorm``: x [..., *normalized_shape]."""

    has_backward: bool = True
    can_torch_compile: bool = True

    normalized_shape: tuple[int, ...]
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def forward(self, input: Tensor) -> Tensor:
        return _normalized(input, self.weight, self.bias, "layer", self.eps, len(self.normalized_shape))


class RMSNorm(nn.Module):
    """diffusers' ``RMSNorm``: x [..., D]; the result has the weight's dtype, as theirs has."""

    has_backward: bool = True
    can_torch_compile: bool = True

    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.weight is None:
            return _normalized(hidden_states, None, None, "rms", self.eps)
        # The wider of the two first, so that nothing is rounded before the end.
        wide = torch.promote_types(hidden_states.dtype, self.weight.dtype)
        return _normalized(hidden_states.to(wide), self.weight, self.bias, "rms", self.eps).to(self.weight.dtype)


class TorchRMSNorm(nn.Module):
    """``torch.nn.RMSNorm``: x [..., *normalized_shape]."""

    has_backward: bool = True
    can_torch_compile: bool = True

    normalized_shape: tuple[int, ...]
    weight: Tensor | None
    eps: float | None

    def forward(self, x: Tensor) -> Tensor:
        eps = self.eps
        if eps is None:  # what torch takes: of the dtype it computes in
            eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
        return _normalized(x, self.weight, None, "rms", eps, len(self.normalized_shape))


class StableAudioLayerNorm(nn.Module):
    """``LayerNorm`` of stable-audio-tools and Stable Audio 3, whose weight and bias are called gamma and beta."""

    has_backward: bool = True
    can_torch_compile: bool = True

    gamma: Tensor
    beta: Tensor
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        return _normalized(x, self.gamma, self.beta, "layer", self.eps)


class StableAudioRMSNorm(nn.Module):
    """``RMSNorm`` of Stable Audio 3, whose weight is called gamma."""

    has_backward: bool = True
    can_torch_compile: bool = True

    gamma: Tensor
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        return _normalized(x, self.gamma, None, "rms", self.eps)


class AdaLayerNormZero(nn.Module):
    """diffusers' ``AdaLayerNormZero``: x [B, N, D] -> (h, gate_msa, shift_mlp, scale_mlp, gate_mlp)."""

    has_backward: bool = True
    can_torch_compile: bool = True

    emb: nn.Module | None
    silu: nn.Module
    linear: nn.Module
    norm: nn.Module

    def forward(
        self,
        x: Tensor,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        hidden_dtype: torch.dtype | None = None,
        emb: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        if self.emb is not None:
            emb = self.emb(timestep, class_labels, hidden_dtype=hidden_dtype)
        emb = self.linear(self.silu(emb))
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = emb.chunk(6, dim=1)
        return _modulated(self.norm, x, scale_msa, shift_msa), gate_msa, shift_mlp, scale_mlp, gate_mlp


class AdaLayerNormZeroSingle(nn.Module):
    """diffusers' ``AdaLayerNormZeroSingle``: x [B, N, D] -> (h, gate)."""

    has_backward: bool = True
    can_torch_compile: bool = True

    silu: nn.Module
    linear: nn.Module
    norm: nn.Module

    def forward(self, x: Tensor, emb: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, scale, gate = self.linear(self.silu(emb)).chunk(3, dim=1)
        return _modulated(self.norm, x, scale, shift), gate


class AdaLayerNormContinuous(nn.Module):
    """diffusers' ``AdaLayerNormContinuous``: x [B, N, D]."""

    has_backward: bool = True
    can_torch_compile: bool = True

    silu: nn.Module
    linear: nn.Module
    norm: nn.Module

    def forward(self, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
        scale, shift = self.linear(self.silu(conditioning_embedding).to(x.dtype)).chunk(2, dim=1)
        return _modulated(self.norm, x, scale, shift)


class SwiGLU(nn.Module):
    """diffusers' ``SwiGLU``: the projection, then value * silu(gate)."""

    has_backward: bool = True
    can_torch_compile: bool = True

    proj: nn.Module

    def forward(self, hidden_states: Tensor) -> Tensor:
        return swiglu(self.proj(hidden_states))


class GEGLU(nn.Module):
    """diffusers' ``GEGLU``: the projection, then value * gelu(gate).  Further arguments are ignored, as there."""

    has_backward: bool = True
    can_torch_compile: bool = True

    proj: nn.Module

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        return geglu(self.proj(hidden_states))


class StableAudioGLU(nn.Module):
    """``GLU`` of stable-audio-tools and Stable Audio 3; fused where its activation is SiLU or the exact GELU."""

    has_backward: bool = True
    can_torch_compile: bool = True

    act: nn.Module
    proj: nn.Module
    use_conv: bool

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x.transpose(1, 2)).transpose(1, 2) if self.use_conv else self.proj(x)
        if isinstance(self.act, nn.SiLU):
            return swiglu(x)
        if isinstance(self.act, nn.GELU) and self.act.approximate == "none":
            return geglu(x)
        value, gate = x.chunk(2, dim=-1)
        return value * self.act(gate)


class SiluAndMul(nn.Module):
    """silu(gate) * value of x = (gate, value) [..., 2 D], as in transformers and vLLM."""

    has_backward: bool = True
    can_torch_compile: bool = True

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x, gate_first=True)


class GeluAndMul(nn.Module):
    """gelu(gate) * value of x = (gate, value) [..., 2 D]; the exact GELU."""

    has_backward: bool = True
    can_torch_compile: bool = True

    def forward(self, x: Tensor) -> Tensor:
        return geglu(x, gate_first=True)


class Snake1d(nn.Module):
    """``Snake1d`` of diffusers' Oobleck: x [B, C, ...]; alpha and beta [1, C, 1], their logarithms with logscale."""

    has_backward: bool = True
    can_torch_compile: bool = True

    alpha: Tensor
    beta: Tensor
    logscale: bool

    def forward(self, hidden_states: Tensor) -> Tensor:
        alpha, beta = self.alpha.flatten(), self.beta.flatten()
        if self.logscale:
            alpha, beta = alpha.exp(), beta.exp()
        return snake(hidden_states.flatten(2), alpha, beta).view(hidden_states.shape)


class SnakeBeta(nn.Module):
    """``SnakeBeta`` of stable-audio-tools: x [B, C, T]; alpha and beta [C], their logarithms with alpha_logscale."""

    has_backward: bool = True
    can_torch_compile: bool = True

    alpha: Tensor
    beta: Tensor
    alpha_logscale: bool

    def forward(self, x: Tensor) -> Tensor:
        if self.alpha_logscale:
            return snake(x, self.alpha.exp(), self.beta.exp())
        return snake(x, self.alpha, self.beta)
