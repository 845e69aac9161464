"""The Triton launches of attention that :mod:`presto_kernels.testing.aot` compiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from presto_kernels.testing.aot import Variant


@dataclass(frozen=True)
class Call:
    """One call.  ``lengths``: the dtype of key_lengths or None; ``fused``: with QK-norm and rotary in it."""

    variant: str
    dim: int = 64
    dtype: torch.dtype = torch.bfloat16
    lengths: torch.dtype | None = None
    window: tuple[int, int] = (-1, -1)
    kv_heads: int = 16
    fused: bool = False


_FP16, _FP32 = torch.float16, torch.float32
CALLS = (
    Call("plain"),
    Call("plain", dtype=_FP32),
    Call("key lengths", lengths=torch.int64, dtype=_FP16, kv_heads=4),
    Call("window", window=(17, 17)),
    Call("window and key lengths", window=(17, 17), lengths=torch.int32, dtype=_FP32),
    Call("plain", dim=80),
    Call("plain", dim=128),
    Call("window", window=(17, 17), dim=128),
    Call("plain", dim=128, dtype=_FP32),
    Call("norm and rotary", fused=True),
    Call("norm and rotary", fused=True, dim=128),
    Call("norm and rotary", fused=True, dtype=_FP32),
)


def launches(call: Call, *, batch: int = 2, queries: int = 1379, keys: int = 1379) -> list[Any]:
    """The forward and backward launches of a call, on tensors that hold no data."""
    from presto_kernels.ops.attention import triton_kernels

    def empty(*shape: int, dtype: torch.dtype = call.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q, k = empty(batch, queries, 16, call.dim), empty(batch, keys, call.kv_heads, call.dim)
    lengths = None if call.lengths is None else empty(batch, dtype=call.lengths)
    options: dict[str, Any] = {"left": call.window[0], "right": call.window[1], "scale": 0.125}
    if call.fused:
        table, weight = empty(queries, call.dim // 2, dtype=torch.float32), empty(call.dim)
        return [
            triton_kernels.plan_qk_norm_rope(q, k, k, table, table, weight, weight, lengths, q, eps=1e-6, **options)
        ]
    lse = empty(batch, 16, queries, dtype=torch.float32)
    forward = triton_kernels.plan_forward(q, k, k, lengths, q, lse, **options)
    backward = triton_kernels.plan_backward(q, q, k, k, q, lse, lse, lengths, q, k, k, **options)
    return [forward, *backward]


def variants() -> list[Variant]:
    """The forward and backward launches of every call of :data:`CALLS`."""
    return [Variant(f"{call.variant}, Dh={call.dim}", call.dtype, launches(call)) for call in CALLS]
