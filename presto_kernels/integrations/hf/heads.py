"""Heads ``[B, N, H, Dh]`` between the projections and the output: norms, rotary tables, attention."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_kernels.integrations.hf import norms
from presto_kernels.integrations.modules import hooked
from presto_kernels.integrations.session import Session
from presto_kernels.ops.attention.api import attention
from presto_kernels.ops.rotary.api import qk_norm_rope

Tables = tuple[Tensor, Tensor]  # cos and sin [N, R/2], fp32


def norms_refusal(*pairs: tuple[nn.Module | None, nn.Module | None]) -> str | None:
    """Why the norms of (queries, keys) cannot be passed by, or None."""
    for of_q, of_k in pairs:
        reason = norms.passed_by(of_q, of_k)
        if reason:
            return reason
        if (of_q is None) != (of_k is None):
            return "a norm of queries or of keys alone"
        if of_q is not None and of_k is not None and (norms.kind(of_q), of_q.eps) != (norms.kind(of_k), of_k.eps):
            return "different norms of queries and keys"
    return None


def rotary_refusal(rotary: Any, tokens: int) -> str | None:
    """Why (cos, sin) of full width cannot be taken, or None."""
    if rotary is None:
        return None
    if not isinstance(rotary, tuple | list) or len(rotary) != 2:
        return "rotary embeddings that are not (cos, sin)"
    if any(table.dim() != 2 or table.shape[0] != tokens for table in rotary):
        return "rotary tables that are not [N, R]"
    return "rotary tables that require grad" if any(table.requires_grad for table in rotary) else None


def norm_rope(
    q: Tensor,
    k: Tensor | None,
    of_q: nn.Module | None,
    of_k: nn.Module | None,
    tables: Tables | None = None,
    *,
    interleaved: bool = False,
) -> tuple[Tensor, Any]:
    """Queries and keys, or either alone, normalised by the modules ``of_q``, ``of_k`` and turned."""
    if of_q is None and tables is None:
        return q, k
    given: dict[str, Any] = {"norm": None, "interleaved": interleaved}
    if of_q is not None:
        of_q_too = norms.arguments(of_q)
        given |= {"norm": of_q_too["norm"], "eps": of_q_too["eps"]}
        given |= {"q_weight": of_q_too["weight"], "q_bias": of_q_too["bias"]}
    if of_k is not None and k is not None:
        of_k_too = norms.arguments(of_k)
        given |= {"k_weight": of_k_too["weight"], "k_bias": of_k_too["bias"]}
    cos, sin = tables or (None, None)
    return qk_norm_rope(q, k, cos, sin, **given)


def of_context(module: Any, context: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Keys, normalised by ``module.norm_k``, and values of a text: what they are is the prompt's alone."""
    layers = tuple(layer for layer in (module.to_k, module.to_v, module.norm_k) if layer is not None)

    def computed() -> tuple[Tensor, Tensor]:
        k, v = (layer(context).unflatten(-1, (-1, head_dim)) for layer in (module.to_k, module.to_v))
        return norm_rope(k, None, module.norm_k, None)[0], v

    if hooked(module):  # a hook may change what is attended to from step to step
        return computed()
    return module._presto.constant((id(module), "keys and values"), context, layers, computed)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """``mask``: as ``scaled_dot_product_attention`` takes it, which then runs."""
    if mask is None:
        return attention(q, k, v, scale=scale)
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped).transpose(1, 2)


def tables(session: Session, rotary: Tables | None, *, interleaved: bool = False) -> Tables | None:
    """cos and sin of full width ``[N, R]``, in which each angle stands twice, as the ops take them.

    Twice: in both halves, or side by side (``interleaved``).
    """
    if rotary is None:
        return None
    cos, sin = rotary
    if torch.compiler.is_compiling():
        return _half(cos, interleaved), _half(sin, interleaved)
    made = session.table(
        ("cos, sin of diffusers", interleaved),
        (cos, sin),
        lambda: (_half(cos, interleaved), _half(sin, interleaved)),
    )
    return made[0], made[1]


@torch.no_grad()
def _half(table: Tensor, interleaved: bool) -> Tensor:
    half = table[:, ::2] if interleaved else table[:, : table.shape[1] // 2]
    return half.float().contiguous()


def other_backend(processor: Any) -> str | None:
    """Why an attention processor that lets its caller choose an implementation does not run the usual one, or None."""
    if getattr(processor, "_parallel_config", None) is not None:
        return "attention split over devices"
    chosen = getattr(processor, "_attention_backend", None)
    if chosen is None:
        registry = sys.modules.get("diffusers.models.attention_dispatch")
        if registry is not None:
            chosen, _ = registry._AttentionBackendRegistry.get_active_backend()
    chosen = getattr(chosen, "value", chosen)
    return None if chosen in (None, "native") else f"the attention backend {chosen} was chosen"


def for_sdpa(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """A mask ``[B, Nk]``, which diffusers' own attention takes too, as ``[B, 1, 1, Nk]``; others as they are."""
    if mask is not None and mask.dim() == 2 and mask.shape == (q.shape[0], k.shape[1]):
        return mask[:, None, None]
    return mask
