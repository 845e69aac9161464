"""The blocks around ``Attention``: their norms, modulations, gates and additions as seams.

StableAudioDiTBlock         x += A(LN x);  x += A(LN x, text);  x += ff(LN x)
BasicTransformerBlock       the same with or without text, and AdaLN-Zero in DiT
JointTransformerBlock       SD3: two streams that attend jointly, AdaLN-Zero on both; SD3.5 a second self-attention
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from presto_kernels.integrations.hf import norms
from presto_kernels.integrations.hf.base import Fused
from presto_kernels.ops.modulation.api import adaln_modulate, gated_residual, gated_residual_adaln

_CHUNKS = "a feedforward in chunks"


class FusedStableAudioBlock(Fused):
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        rotary_embedding: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        x, context = hidden_states, encoder_hidden_states
        reason = norms.refusal(x, self.norm1, self.norm2, self.norm3)
        if reason:
            return self._pass_on(reason, x, attention_mask, context, encoder_attention_mask, rotary_embedding)
        running = self._presto.settings.running
        with running():
            h = adaln_modulate(x, None, None, **norms.arguments(self.norm1))
        branch = self.attn1(h, attention_mask=attention_mask, rotary_emb=rotary_embedding)
        with running():
            x, h = gated_residual_adaln(x, branch, None, None, None, **norms.arguments(self.norm2))
        branch = self.attn2(h, encoder_hidden_states=context, attention_mask=encoder_attention_mask)
        with running():
            x, h = gated_residual_adaln(x, branch, None, None, None, **norms.arguments(self.norm3))
        branch = self.ff(h)
        with running():
            return gated_residual(x, branch, None)


def stable_audio_fits(module: Any) -> str | None:
    return norms.fit(module.norm1, module.norm2, module.norm3)


class FusedBasicBlock(Fused):
    """With ``norm_type`` "layer_norm" and "ada_norm_zero"."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        x, context = hidden_states, encoder_hidden_states
        zero = self.norm_type == "ada_norm_zero"
        reason = norms.refusal(x, None if zero else self.norm1, self.norm2, self.norm3)
        if cross_attention_kwargs:
            reason = "cross_attention_kwargs"
        elif self._chunk_size is not None:
            reason = _CHUNKS
        if reason:
            return self._pass_on(
                reason, x, attention_mask, context, encoder_attention_mask, timestep, cross_attention_kwargs,
                class_labels, added_cond_kwargs,
            )  # fmt: skip
        running = self._presto.settings.running
        gate = shift_mlp = scale_mlp = gate_mlp = None
        if zero:
            h, gate, shift_mlp, scale_mlp, gate_mlp = self.norm1(x, timestep, class_labels, hidden_dtype=x.dtype)
        else:
            with running():
                h = adaln_modulate(x, None, None, **norms.arguments(self.norm1))
        branch = self.attn1(
            h, encoder_hidden_states=context if self.only_cross_attention else None, attention_mask=attention_mask
        )
        if self.attn2 is not None:
            with running():
                x, h = gated_residual_adaln(x, branch, gate, None, None, **norms.arguments(self.norm2))
            branch, gate = self.attn2(h, encoder_hidden_states=context, attention_mask=encoder_attention_mask), None
        with running():
            x, h = gated_residual_adaln(x, branch, gate, scale_mlp, shift_mlp, **norms.arguments(self.norm3))
        branch = self.ff(h)
        with running():
            return gated_residual(x, branch, gate_mlp)


def basic_fits(module: Any) -> str | None:
    if module.norm_type not in ("layer_norm", "ada_norm_zero"):
        return f"its norms are {module.norm_type}"
    if module.pos_embed is not None or hasattr(module, "fuser"):
        return "positions are added inside, or a fuser"
    return norms.fit(None if module.norm_type == "ada_norm_zero" else module.norm1, module.norm2, module.norm3)


class FusedJointBlock(Fused):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        x, context, given = hidden_states, encoder_hidden_states, joint_attention_kwargs or {}
        reason = norms.refusal(x, self.norm2, self.norm2_context, conditioning=temb)
        if self._chunk_size is not None:
            reason = _CHUNKS
        if reason:
            return self._pass_on(reason, x, context, temb, joint_attention_kwargs)
        h, gate, shift_mlp, scale_mlp, gate_mlp, *of_second = self.norm1(x, emb=temb)
        if self.context_pre_only:
            context_h, of_context = self.norm1_context(context, temb), []
        else:
            context_h, *of_context = self.norm1_context(context, emb=temb)
        branch, context_branch = self.attn(hidden_states=h, encoder_hidden_states=context_h, **given)
        if of_second:
            h, second_gate = of_second
            with self._presto.settings.running():
                x = gated_residual(x, branch, gate)
            branch, gate = self.attn2(hidden_states=h, **given), second_gate
        x = close(self, x, branch, (gate, shift_mlp, scale_mlp, gate_mlp), self.norm2, self.ff)
        if not of_context:
            return None, x
        return close(self, context, context_branch, of_context, self.norm2_context, self.ff_context), x


def close(block: Any, x: Tensor, branch: Tensor, modulation: Any, norm: Any, ff: Any) -> Tensor:
    """From the end of attention to the end of the block, for one stream."""
    gate, shift_mlp, scale_mlp, gate_mlp = modulation
    with block._presto.settings.running():
        x, h = gated_residual_adaln(x, branch, gate, scale_mlp, shift_mlp, **norms.arguments(norm))
    branch = ff(h)
    with block._presto.settings.running():
        return gated_residual(x, branch, gate_mlp)


def joint_fits(module: Any) -> str | None:
    return norms.fit(module.norm2, module.norm2_context)
