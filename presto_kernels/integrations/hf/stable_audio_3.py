"""Stable Audio 3 as diffusers has it; Stability's own is in :mod:`presto_kernels.integrations.stability`.

    scale, shift, gate, scale', shift', gate' = to_scale_shift_gate + global_modulation;   gates as sigmoid(1 - gate)
    self     q, q', k, k', v = to_qkv(x);   A(q, k, v) - A(q', k', v)          RMSNorm of each head, partial rotary
    cross    q, q' = to_q(x);  k, k', v = to_kv(text)                          the same without rotary

or q, k, v and A(q, k, v) alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_kernels.integrations.hf import heads, norms
from presto_kernels.integrations.hf.base import Fused
from presto_kernels.integrations.modules import class_name, hooked
from presto_kernels.ops.modulation.api import adaln_modulate, gated_residual, gated_residual_adaln

_AT = "diffusers.models.transformers.transformer_stable_audio3."
_SELF, _CROSS = _AT + "StableAudio3SelfAttnProcessor", _AT + "StableAudio3CrossAttnProcessor"


class FusedStableAudio3SelfAttention(Fused):
    def forward(self, hidden_states: Tensor, rope: Tensor) -> Tensor:
        reason = _refusal(self, _SELF)
        if reason is None and (rope.dim() != 2 or rope.shape[0] != hidden_states.shape[1] or rope.requires_grad):
            reason = "rotary angles that are not one row a token"
        if reason:
            return self._pass_on(reason, hidden_states, rope)
        with_v = self.to_qkv(hidden_states).unflatten(-1, (-1, self.dim_heads))
        q, k, v = with_v.split([*_both(self), self.heads], dim=2)
        with self._presto.settings.running():
            q, k = heads.norm_rope(q, k, self.q_norm, self.k_norm, self._presto.cos_sin(rope))
            out = _attend(self, q, k, v, None)
        return self.to_out(out.flatten(2))


class FusedStableAudio3CrossAttention(Fused):
    def forward(self, hidden_states: Tensor, context: Tensor, context_mask: Tensor | None = None) -> Tensor:
        reason = _refusal(self, _CROSS)
        if reason:
            return self._pass_on(reason, hidden_states, context, context_mask)
        mask = None if context_mask is None else context_mask[:, None, None, :].bool()

        def computed() -> tuple[Tensor, Tensor]:
            k, v = self.to_kv(context).unflatten(-1, (-1, self.dim_heads)).split([_both(self)[1], self.heads], dim=2)
            return heads.norm_rope(k, None, self.k_norm, None)[0], v

        q = self.to_q(hidden_states).unflatten(-1, (-1, self.dim_heads))
        with self._presto.settings.running():
            if hooked(self):  # a hook may change what is attended to from step to step
                k, v = computed()
            else:
                layers = (self.to_kv, self.k_norm)
                k, v = self._presto.constant((id(self), "keys and values"), context, layers, computed)
            q, _ = heads.norm_rope(q, None, self.q_norm, None)
            out = _attend(self, q, k, v, mask)
        return self.to_out(out.flatten(2))


def _both(self: Any) -> tuple[int, int]:
    """Heads of all queries, and of all keys."""
    count = self.heads * (2 if self.use_differential else 1)
    return count, count


def _attend(self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    first, *second = (
        heads.attend(of_q, of_k, v, mask)
        for of_q, of_k in zip(q.split(self.heads, 2), k.split(self.heads, 2), strict=True)
    )
    return first - second[0] if second else first


def _refusal(self: Any, processor: str) -> str | None:
    if class_name(self.processor) != processor:
        return f"its attention processor is a {type(self.processor).__name__}"
    return heads.other_backend(self.processor) or heads.norms_refusal((self.q_norm, self.k_norm))


def attention_fits(module: Any) -> str | None:
    known = class_name(module.processor) in (_SELF, _CROSS)
    return None if known else f"its attention processor is a {type(module.processor).__name__}"


class FusedStableAudio3Block(Fused):
    def forward(
        self,
        hidden_states: Tensor,
        context: Tensor,
        global_modulation: Tensor,
        rope: Tensor,
        context_mask: Tensor | None = None,
        local_seq: Tensor | None = None,
        num_memory_tokens: int = 0,
    ) -> Tensor:
        x = hidden_states
        used = (self.pre_norm, self.cross_attend_norm, self.ff_norm)
        reason = norms.refusal(x, *used, conditioning=global_modulation)
        if reason:
            return self._pass_on(
                reason, x, context, global_modulation, rope, context_mask, local_seq, num_memory_tokens
            )
        running = self._presto.settings.running
        scale, shift, gate, scale_ff, shift_ff, gate_ff = (self.to_scale_shift_gate + global_modulation).chunk(6, -1)
        with running():
            h = adaln_modulate(x, scale, shift, **norms.arguments(self.pre_norm))
        branch = self.self_attn(h, rope=rope)
        with running():
            x, h = gated_residual_adaln(
                x, branch, gate, None, None, gate_fn="sigmoid_one_minus", **norms.arguments(self.cross_attend_norm)
            )
        branch = self.cross_attn(h, context=context, context_mask=context_mask)
        local = None if local_seq is None else self._local(local_seq, num_memory_tokens)
        with running():
            x, h = gated_residual_adaln(
                x, branch, None, scale_ff, shift_ff, residual2=local, **norms.arguments(self.ff_norm)
            )
        branch = self.ff(h)
        with running():
            return gated_residual(x, branch, gate_ff, gate_fn="sigmoid_one_minus")

    def _local(self, local_seq: Tensor, in_front: int) -> Tensor:
        """Embedded, zero for the tokens in front; the prompt's alone."""

        def embedded() -> Tensor:
            return F.pad(self.to_local_embed(local_seq), (0, 0, in_front, 0))

        return self._presto.constant((id(self), "local", in_front), local_seq, (self.to_local_embed,), embedded)


def block_fits(module: Any) -> str | None:
    return norms.fit(module.pre_norm, module.cross_attend_norm, module.ff_norm)


class FusedStableAudio3Rotary(Fused):
    """The angles of a length are computed once."""

    def forward(self, seq_len: int, device: torch.device) -> Tensor:
        made = super().forward
        if torch.compiler.is_compiling():
            return made(seq_len, device)
        return self._presto.table((id(self), seq_len, device), (self.inv_freq,), lambda: made(seq_len, device))
