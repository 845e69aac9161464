"""``Attention`` of both codebases: projections as they are; norms, rotary and attention fused.

    self     q, k, v = to_qkv(x)                              differential: q, k, v, q', k'
    cross    q = to_q(x); k, v = to_kv(context)               differential: q, q' and k, k', v
    out      to_out(A(q, k, v))                               differential: to_out(A(q, k, v) - A(q', k', v))

Heads are packed ``(h d)``; norms of queries and keys come before rotary; rotary turns the first ``angles.shape[-1]``
elements, half-split.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_kernels.integrations.stability import norms
from presto_kernels.integrations.swapping import Accelerated
from presto_kernels.ops.attention.api import attention
from presto_kernels.ops.rotary.api import qk_norm_rope

Heads = list[Tensor]  # [B, N, H, Dh] each; two where attention is differential


class FusedAttention(Accelerated):
    """``Attention.forward`` on ``qk_norm_rope`` and ``attention``."""

    window_needs_flash = False  # without flash-attn the original has another way to a sliding window

    def forward(
        self, x: Tensor, context: Tensor | None = None, rotary_pos_emb: Any = None, *more: Any, **given: Any
    ) -> Tensor:
        reason = "arguments by position" if more else _refusal(self, x, context, rotary_pos_emb, given)
        if reason:
            self._presto.pass_on(self, reason)
            return super().forward(x, context, rotary_pos_emb, *more, **given)
        angles = None if rotary_pos_emb is None else rotary_pos_emb[0]
        if angles is not None and angles.shape[0] != x.shape[1]:  # a view is a new tensor, for which there is no table
            angles = angles[-x.shape[1] :]
        mask, window = given.get("padding_mask"), given.get("flash_attn_sliding_window")
        if window is not None:
            window = tuple(window) if self._sees_windows() else None
        if _is_causal(self, given) and x.shape[1] > 1:
            window = (-1, 0)
        with self._presto.settings.running():
            queries, keys, v = _heads(self, x, context, angles)
            out = _attend(queries, keys, v, window, mask, self._presto.settings.masks)
        return _feature_scale(self, self.to_out(out.flatten(2)), mask)

    def _sees_windows(self) -> bool:
        """Without flash-attn stable-audio-tools prints that it cannot, and attends to everything."""
        return not self.window_needs_flash or _has_flash(self) or self._presto.settings.masks == "exact"


def _has_flash(self: Any) -> bool:
    return self._original.forward.__globals__.get("flash_attn_func") is not None


def _is_causal(self: Any, given: dict[str, Any]) -> bool:
    causal = given.get("causal")
    return bool(self.causal if causal is None else causal)


def _refusal(self: Any, x: Tensor, context: Tensor | None, rotary: Any, given: dict[str, Any]) -> str | None:
    """Why a call is left to the original, or None."""
    if given.get("flex_attention_block_mask") is not None or given.get("flex_attention_score_mod") is not None:
        return "a mask or score of flex_attention"
    if given.get("varlen_metadata") is not None:
        return "padding packed away by flash-attn"
    same_length = context is None or context.shape[1] == x.shape[1]
    if _is_causal(self, given) and (not same_length or given.get("flash_attn_sliding_window") is not None):
        return "causal with keys of another length, or with a window"
    if rotary is not None and (given.get("rotary_pos_emb_k") is not None or not same_length):
        return "rotary between queries and keys of different positions"
    if rotary is not None and rotary[0].dim() != 2:
        return "rotary angles for each sample"
    if norms.hooked(*(getattr(self, name) for name in ("q_norm", "k_norm") if hasattr(self, name))):
        return "a hook on the norm of queries or keys"
    return None


def _heads(self: Any, x: Tensor, context: Tensor | None, angles: Tensor | None) -> tuple[Heads, Heads, Tensor]:
    """Queries, keys and values, normalised and turned."""
    cos, sin = (None, None) if angles is None else self._presto.cos_sin(angles)
    if not hasattr(self, "to_q"):
        parts = _split(self.to_qkv(x), self.dim_heads, self.num_heads)
        queries, keys, v = [parts[0], *parts[3:4]], [parts[1], *parts[4:]], parts[2]
        return *_norm_rope(self, queries, keys, cos, sin), v
    queries = _split(self.to_q(x), self.dim_heads, self.num_heads)
    source = x if context is None else context
    if cos is not None:
        *keys, v = _split(self.to_kv(source), self.dim_heads, self.kv_heads)
        return *_norm_rope(self, queries, keys, cos, sin), v

    def normalised() -> tuple[Heads, Tensor]:
        *keys, v = _split(self.to_kv(source), self.dim_heads, self.kv_heads)
        return _norm_rope(self, [], keys, None, None)[1], v

    # Without rotary, keys and values are the prompt's alone.
    keys, v = self._presto.constant((id(self), "keys and values"), source, (self.to_kv,), normalised)
    return _norm_rope(self, queries, [], None, None)[0], keys, v


def _split(packed: Tensor, dim_heads: int, heads: int) -> Heads:
    """``[B, N, parts H Dh]`` to views ``[B, N, H, Dh]``."""
    return list(packed.unflatten(2, (-1, heads, dim_heads)).unbind(2))


def _norm_rope(self: Any, queries: Heads, keys: Heads, cos: Tensor | None, sin: Tensor | None) -> tuple[Heads, Heads]:
    given = _norms(self)
    if given["norm"] is None and cos is None:
        return queries, keys
    if queries and keys:
        pairs = [qk_norm_rope(q, k, cos, sin, **given) for q, k in zip(queries, keys, strict=True)]
        return [q for q, _ in pairs], [k for _, k in pairs]
    of_q = {name: value for name, value in given.items() if not name.startswith("k_")}
    of_k = {name.replace("k_", "q_", 1): value for name, value in given.items() if not name.startswith("q_")}
    return (
        [qk_norm_rope(q, None, cos, sin, **of_q)[0] for q in queries],
        [qk_norm_rope(k, None, cos, sin, **of_k)[0] for k in keys],
    )


def _norms(self: Any) -> dict[str, Any]:
    """The norms of queries and keys as arguments of ``qk_norm_rope``."""
    if self.qk_norm == "l2":
        return {"norm": "l2", "eps": getattr(self, "qk_norm_eps", 1e-12)}  # F.normalize's own where none is named
    if self.qk_norm == "none":
        return {"norm": None}
    of_q, of_k = norms.arguments(self.q_norm), norms.arguments(self.k_norm)
    shared: dict[str, Any] = {name: of_q.pop(name) for name in ("norm", "eps") if name in of_q}
    of_k = {name: value for name, value in of_k.items() if name not in shared}
    return {**shared, **{f"q_{n}": v for n, v in of_q.items()}, **{f"k_{n}": v for n, v in of_k.items()}}


def _attend(
    queries: Heads, keys: Heads, v: Tensor, window: tuple[int, int] | None, mask: Tensor | None, masks: str
) -> Tensor:
    if mask is not None and masks == "exact":
        outs = [_unseen(q, k, v, window, mask) for q, k in zip(queries, keys, strict=True)]
    else:
        if mask is not None:  # as the original: padded values are zero, and their keys keep a share of the softmax
            v = v * mask[:, :, None, None].to(v.dtype)
        outs = [attention(q, k, v, window=window) for q, k in zip(queries, keys, strict=True)]
    return outs[0] if len(outs) == 1 else outs[0] - outs[1]


def _unseen(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int] | None, mask: Tensor) -> Tensor:
    """Attention to the keys of a mask ``[B, Nk]`` of any form, which no key lengths can say unasked."""
    seen = mask.bool()[:, None, None, :]
    if window is not None:
        ahead = torch.arange(k.shape[1], device=k.device) - torch.arange(q.shape[1], device=q.device)[:, None]
        left, right = window
        seen = seen & (ahead >= -left if left >= 0 else ahead > -q.shape[1])
        seen = seen & (ahead <= right if right >= 0 else ahead < k.shape[1])
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=grouped).transpose(1, 2)


def _feature_scale(self: Any, out: Tensor, mask: Tensor | None) -> Tensor:
    """``feat_scale``: the mean over the tokens and what is left of it, each with a gain of its own."""
    if not self.feat_scale:
        return out
    if mask is None:
        mean = out.mean(dim=-2, keepdim=True)
        return out + self.lambda_dc * mean + self.lambda_hf * (out - mean)
    there = mask.unsqueeze(-1).to(out.dtype)
    mean = (out * there).sum(dim=-2, keepdim=True) / there.sum(dim=-2, keepdim=True).clamp(min=1)
    return out + (self.lambda_dc * mean + self.lambda_hf * (out - mean)) * there


def fits(module: Any) -> str | None:
    if module.qk_norm in ("l2", "none"):
        return None
    kinds = {norms.kind(module.q_norm), norms.kind(module.k_norm)}
    if None in kinds or len(kinds) > 1:
        return f"its queries and keys have the norms {type(module.q_norm).__name__}, {type(module.k_norm).__name__}"
    return None
