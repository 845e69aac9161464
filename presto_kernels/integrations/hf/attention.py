"""``Attention``, whose processor says how it attends: we do what three of the processors do.

    StableAudioAttnProcessor2_0   norms, partial half-split rotary, fewer heads of keys and values, masks
    AttnProcessor2_0              norms, masks
    JointAttnProcessor2_0         norms; the keys and queries of a second stream behind those of the first

The processor is looked at in every call, since it is changed at will (``set_attn_processor``, adapters, slicing).
A mask is prepared by the module itself, and PyTorch's attention honours it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from presto_kernels.integrations.hf import heads, norms
from presto_kernels.integrations.hf.base import Fused, unknown
from presto_kernels.integrations.modules import class_name

_AT = "diffusers.models.attention_processor."
_PLAIN, _STABLE_AUDIO, _JOINT = "AttnProcessor2_0", "StableAudioAttnProcessor2_0", "JointAttnProcessor2_0"


class FusedAttention(Fused):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **given: Any,
    ) -> Any:
        context, mask, rotary = encoder_hidden_states, attention_mask, given.get("rotary_emb")
        reason = _refusal(self, hidden_states, context, mask, given)
        if reason:
            return self._pass_on(reason, hidden_states, context, mask, **given)
        if class_name(self.processor) == _AT + _JOINT:
            return _joint(self, hidden_states, context)
        if mask is not None:
            keys = (hidden_states if context is None else context).shape[1]
            mask = self.prepare_attention_mask(mask, keys, hidden_states.shape[0])
            mask = mask.view(hidden_states.shape[0], self.heads, -1, mask.shape[-1])
        q = self.to_q(hidden_states).unflatten(-1, (self.heads, -1))
        with self._presto.settings.running():
            turned = heads.tables(self._presto, rotary)
            if context is None:
                k, v = (layer(hidden_states).unflatten(-1, (-1, q.shape[-1])) for layer in (self.to_k, self.to_v))
                q, k = heads.norm_rope(q, k, self.norm_q, self.norm_k, turned)
            else:
                k, v = heads.of_context(self, context, q.shape[-1])
                q, _ = heads.norm_rope(q, None, self.norm_q, None, turned)
            out = heads.attend(q, k, v, mask)
        return self.to_out[1](self.to_out[0](out.flatten(2)))


def _joint(self: Any, x: Tensor, context: Tensor | None) -> Any:
    """Both streams attend to both; the second comes behind the first."""
    q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.to_q, self.to_k, self.to_v))
    with self._presto.settings.running():
        q, k = heads.norm_rope(q, k, self.norm_q, self.norm_k)
        if context is not None:
            added = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
            context_q, context_k, context_v = (layer(context).unflatten(-1, (self.heads, -1)) for layer in added)
            context_q, context_k = heads.norm_rope(context_q, context_k, self.norm_added_q, self.norm_added_k)
            q, k, v = torch.cat([q, context_q], 1), torch.cat([k, context_k], 1), torch.cat([v, context_v], 1)
        out = heads.attend(q, k, v).flatten(2)
    if context is None:
        return self.to_out[1](self.to_out[0](out))
    out, context_out = out[:, : x.shape[1]], out[:, x.shape[1] :]
    if not self.context_pre_only:
        context_out = self.to_add_out(context_out)
    return self.to_out[1](self.to_out[0](out)), context_out


def _refusal(self: Any, x: Tensor, context: Tensor | None, mask: Tensor | None, given: dict[str, Any]) -> str | None:
    name = class_name(self.processor)
    if name not in (_AT + _PLAIN, _AT + _STABLE_AUDIO, _AT + _JOINT):
        return f"its attention processor is a {type(self.processor).__name__}"
    if x.dim() != 3:
        return "tokens that are not [B, N, D]"
    rotary = given.get("rotary_emb")
    if rotary is not None and (context is None) == self.is_cross_attention:  # which decides whether keys are turned
        return "rotary in self-attention to another text, or in cross-attention without one"
    if name == _AT + _JOINT and mask is not None:
        return "a mask, which the original does not look at"
    if name == _AT + _JOINT and context is not None:
        reason = heads.norms_refusal((self.norm_added_q, self.norm_added_k))
        if reason:
            return reason
    return (
        unknown(given, ("rotary_emb",) if name == _AT + _STABLE_AUDIO else ())
        or heads.norms_refusal((self.norm_q, self.norm_k))
        or heads.rotary_refusal(rotary, x.shape[1])
    )


def fits(module: Any) -> str | None:
    name = class_name(module.processor)
    if name not in (_AT + _PLAIN, _AT + _STABLE_AUDIO, _AT + _JOINT):
        return f"its attention processor is a {type(module.processor).__name__}"
    if name != _AT + _STABLE_AUDIO and module.inner_kv_dim != module.inner_dim:
        return "fewer heads of keys and values, which its processor does not know"
    for layer in ("group_norm", "spatial_norm", "norm_cross"):
        if getattr(module, layer) is not None:
            return f"it has a {layer}"
    if module.residual_connection or module.rescale_output_factor != 1:
        return "it adds or scales its residual itself"
    if module.to_out is None or module.to_k is None:
        return "it has no projection of its own for keys, or for its output"
    for norm in (module.norm_q, module.norm_k):
        if norm is not None and norms.kind(norm) is None:
            return f"queries and keys have a {type(norm).__name__}"
    return None
