"""ACE-Step: self-attention, cross-attention and an MLP, the first and the last modulated; RMSNorm throughout.

    shift, scale, gate, shift', scale', gate' = scale_shift_table + temb

Queries and keys: RMSNorm of each head; rotary over the whole head, half-split, in self-attention alone.  Every second
layer sees a window, which the model says as a dense mask: PyTorch's attention honours it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from presto_kernels.integrations.hf import heads, norms
from presto_kernels.integrations.hf.base import Fused, unknown
from presto_kernels.integrations.modules import class_name
from presto_kernels.ops.modulation.api import adaln_modulate, gated_residual, gated_residual_adaln

_PROCESSOR = "diffusers.models.transformers.ace_step_transformer.AceStepAttnProcessor2_0"


class FusedAceStepAttention(Fused):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        **given: Any,
    ) -> Tensor:
        x, context, mask = hidden_states, encoder_hidden_states, attention_mask
        text = context if self.is_cross_attention else None
        reason = _refusal(self, x, None if text is not None else image_rotary_emb, given)
        if reason:
            return self._pass_on(reason, x, context, mask, image_rotary_emb, **given)
        q = self.to_q(x).unflatten(-1, (self.heads, -1))
        with self._presto.settings.running():
            if text is not None:
                k, v = heads.of_context(self, text, self.head_dim)
                q, _ = heads.norm_rope(q, None, self.norm_q, None)
            else:
                k, v = (layer(x).unflatten(-1, (self.kv_heads, -1)) for layer in (self.to_k, self.to_v))
                turned = heads.tables(self._presto, image_rotary_emb)
                q, k = heads.norm_rope(q, k, self.norm_q, self.norm_k, turned)
            out = heads.attend(q, k, v, heads.for_sdpa(mask, q, k), self.scaling)
        return self.to_out[1](self.to_out[0](out.flatten(2)))


def _refusal(self: Any, x: Tensor, rotary: Any, given: dict[str, Any]) -> str | None:
    if class_name(self.processor) != _PROCESSOR:
        return f"its attention processor is a {type(self.processor).__name__}"
    if self.training and self.dropout:
        return "dropout of attention weights"
    return (
        unknown(given)
        or heads.other_backend(self.processor)
        or heads.norms_refusal((self.norm_q, self.norm_k))
        or heads.rotary_refusal(rotary, x.shape[1])
    )


def attention_fits(module: Any) -> str | None:
    known = class_name(module.processor) == _PROCESSOR
    return None if known else f"its attention processor is a {type(module.processor).__name__}"


class FusedAceStepBlock(Fused):
    """``AceStepTransformerBlock``."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        temb: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        x, context = hidden_states, encoder_hidden_states
        cross = self.use_cross_attention and context is not None
        reason = norms.refusal(x, self.self_attn_norm, self.cross_attn_norm if cross else None, self.mlp_norm)
        if reason:
            return self._pass_on(reason, x, position_embeddings, temb, attention_mask, context, encoder_attention_mask)
        running = self._presto.settings.running
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (self.scale_shift_table + temb).chunk(6, dim=1)
        with running():
            h = adaln_modulate(x, scale, shift, **norms.arguments(self.self_attn_norm))
        branch = self.self_attn(hidden_states=h, image_rotary_emb=position_embeddings, attention_mask=attention_mask)
        if cross:
            with running():
                x, h = gated_residual_adaln(x, branch, gate, None, None, **norms.arguments(self.cross_attn_norm))
            branch = self.cross_attn(
                hidden_states=h, encoder_hidden_states=context, attention_mask=encoder_attention_mask
            )
            gate = None
        with running():
            x, h = gated_residual_adaln(x, branch, gate, scale_mlp, shift_mlp, **norms.arguments(self.mlp_norm))
        branch = self.mlp(h)
        with running():
            return gated_residual(x, branch, gate_mlp)


def block_fits(module: Any) -> str | None:
    used = [module.self_attn_norm, module.mlp_norm, *([module.cross_attn_norm] if module.use_cross_attention else [])]
    return norms.fit(*used)
