"""Flux: two streams that attend jointly, then one of both; all modulated by AdaLN-Zero.

    double   x, c <- x + g A(AdaLN(x), AdaLN(c)), ...;   x <- x + g' ff(AdaLN(x)),   c likewise
    single   x <- x + g W [A(h); gelu(W' h)],   h = AdaLN(x),   of the text followed by the image

Queries and keys: RMSNorm of each head, then rotary over the whole head, neighbours in pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from presto_kernels.integrations.hf import heads, norms
from presto_kernels.integrations.hf.base import Fused, unknown
from presto_kernels.integrations.hf.blocks import close
from presto_kernels.integrations.modules import class_name
from presto_kernels.ops.modulation.api import gated_residual

_PROCESSOR = "diffusers.models.transformers.transformer_flux.FluxAttnProcessor"
Rotary = tuple[Tensor, Tensor]


class FusedFluxAttention(Fused):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
        **given: Any,
    ) -> Any:
        x, context, rotary = hidden_states, encoder_hidden_states, image_rotary_emb
        reason = _refusal(self, x, context, rotary, given)
        if reason:
            return self._pass_on(reason, x, context, attention_mask, rotary, **given)
        text = 0 if context is None else context.shape[1]
        q, k, v = _projections(self, x, "to_qkv", ("to_q", "to_k", "to_v"))
        with self._presto.settings.running():
            turned = heads.tables(self._presto, rotary, interleaved=True)
            if context is None:
                q, k = heads.norm_rope(q, k, self.norm_q, self.norm_k, turned, interleaved=True)
            else:  # the text has the first positions
                of_text, of_image = _split(turned, text)
                q, k = heads.norm_rope(q, k, self.norm_q, self.norm_k, of_image, interleaved=True)
                added = _projections(self, context, "to_added_qkv", ("add_q_proj", "add_k_proj", "add_v_proj"))
                text_q, text_k, text_v = added
                text_q, text_k = heads.norm_rope(
                    text_q, text_k, self.norm_added_q, self.norm_added_k, of_text, interleaved=True
                )
                q, k, v = torch.cat([text_q, q], 1), torch.cat([text_k, k], 1), torch.cat([text_v, v], 1)
            out = heads.attend(q, k, v, heads.for_sdpa(attention_mask, q, k)).flatten(2)
        if context is None:
            return out
        text_out, out = out[:, :text], out[:, text:]
        return self.to_out[1](self.to_out[0](out)), self.to_add_out(text_out)


def _projections(self: Any, x: Tensor, fused: str, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Queries, keys and values ``[B, N, H, Dh]``."""
    if self.fused_projections:
        packed = getattr(self, fused)(x).chunk(3, dim=-1)
    else:
        packed = tuple(getattr(self, name)(x) for name in names)
    return tuple(part.unflatten(-1, (-1, self.head_dim)) for part in packed)


def _split(tables: heads.Tables | None, text: int) -> tuple[heads.Tables | None, heads.Tables | None]:
    if tables is None:
        return None, None
    cos, sin = tables
    return (cos[:text], sin[:text]), (cos[text:], sin[text:])


def _refusal(self: Any, x: Tensor, context: Tensor | None, rotary: Any, given: dict[str, Any]) -> str | None:
    if class_name(self.processor) != _PROCESSOR:
        return f"its attention processor is a {type(self.processor).__name__}"
    if (context is None) != (self.added_kv_proj_dim is None):
        return "a text that is missing, or for which it has no projections"
    joint = () if context is None else ((self.norm_added_q, self.norm_added_k),)
    tokens = x.shape[1] + (0 if context is None else context.shape[1])
    return (
        unknown(given)
        or heads.other_backend(self.processor)
        or heads.norms_refusal((self.norm_q, self.norm_k), *joint)
        or heads.rotary_refusal(rotary, tokens)
    )


def attention_fits(module: Any) -> str | None:
    known = class_name(module.processor) == _PROCESSOR
    return None if known else f"its attention processor is a {type(module.processor).__name__}"


class FusedFluxBlock(Fused):
    """``FluxTransformerBlock``."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotary | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        x, context = hidden_states, encoder_hidden_states
        reason = norms.refusal(x, self.norm2, self.norm2_context, conditioning=temb)
        if reason:
            return self._pass_on(reason, x, context, temb, image_rotary_emb, joint_attention_kwargs)
        h, *modulation = self.norm1(x, emb=temb)
        context_h, *context_modulation = self.norm1_context(context, emb=temb)
        branch, context_branch, *of_adapter = self.attn(
            hidden_states=h,
            encoder_hidden_states=context_h,
            image_rotary_emb=image_rotary_emb,
            **(joint_attention_kwargs or {}),
        )
        x = close(self, x, branch, modulation, self.norm2, self.ff)
        if of_adapter:  # of an IP adapter
            x = x + of_adapter[0]
        context = close(self, context, context_branch, context_modulation, self.norm2_context, self.ff_context)
        return _clipped(context), x


class FusedFluxSingleBlock(Fused):
    """``FluxSingleTransformerBlock``."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotary | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        reason = norms.refusal(hidden_states, conditioning=temb)
        if reason:
            return self._pass_on(
                reason, hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs
            )
        text = encoder_hidden_states.shape[1]
        x = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        h, gate = self.norm(x, emb=temb)
        mlp = self.act_mlp(self.proj_mlp(h))
        branch = self.attn(hidden_states=h, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {}))
        branch = self.proj_out(torch.cat([branch, mlp], dim=2))
        with self._presto.settings.running():
            x = _clipped(gated_residual(x, branch, gate))
        return x[:, :text], x[:, text:]


def _clipped(x: Tensor) -> Tensor:
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x


def block_fits(module: Any) -> str | None:
    return norms.fit(module.norm2, module.norm2_context)
