"""The Triton launches of ``qk_norm_rope`` that :mod:`presto_kernels.testing.aot` compiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from presto_kernels.testing.aot import Variant


@dataclass(frozen=True)
class Call:
    """One call; ``rotary`` is R, 0 for none.  q and k are views of one fused projection, which alignment depends on."""

    variant: str
    dim: int = 64
    rotary: int = 64
    heads: int = 16
    dtype: torch.dtype = torch.bfloat16
    weight: bool = True
    bias: bool = False
    norm: str | None = "rms"
    interleaved: bool = False


_BASE = Call("qk_norm_rope")
CALLS = (
    _BASE,
    replace(_BASE, dtype=torch.float32),
    replace(_BASE, variant="interleaved", interleaved=True),
    replace(_BASE, variant="layer, bias, half turned", norm="layer", bias=True, rotary=32),
    replace(_BASE, variant="l2", norm="l2", dim=128, rotary=128, heads=8, weight=False),
    replace(_BASE, variant="rotary alone", norm=None, weight=False),
    replace(_BASE, variant="dyt, bias, half turned", norm="dyt", bias=True, rotary=32),
    replace(_BASE, variant="dyt", norm="dyt"),
    replace(_BASE, variant="qk_norm_rope", dim=80, rotary=80),
)


def launches(call: Call, *, batch: int = 2, tokens: int = 33) -> list[Any]:
    """The forward and backward launches of a call, on tensors that hold no data."""
    from presto_kernels.ops.rotary import operators, triton_kernels

    def empty(*shape: int, dtype: torch.dtype = call.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q, k = empty(batch, tokens, 3, call.heads, call.dim).unbind(2)[:2]
    out = empty(batch, tokens, call.heads, call.dim)
    table = empty(tokens, call.rotary // 2, dtype=torch.float32) if call.rotary else None
    weight = empty(call.dim) if call.weight else None
    bias = empty(call.dim) if call.bias else None
    alpha = empty(1, dtype=torch.float32) if call.norm == "dyt" else None
    tables = (table, table, None, None)
    norm = operators.NORMS[call.norm]
    forward = triton_kernels.plan_forward(
        q, k, tables, (weight, weight, bias, bias), (alpha, alpha), out, out,
        norm=norm, eps=1e-6, interleaved=call.interleaved,
    )  # fmt: skip
    reads_x = call.norm is not None or call.weight
    owners = {"q": out, "k": out, "q_weight": weight, "k_weight": weight, "q_bias": bias, "k_bias": bias}
    owners |= {"q_alpha": alpha, "k_alpha": alpha}
    backward = triton_kernels.plan_backward(
        out, out, q if reads_x else None, k if reads_x else None, tables, (weight, weight), (alpha, alpha),
        {name: owner for name, owner in owners.items() if owner is not None},
        norm=norm, eps=1e-6, interleaved=call.interleaved,
    )  # fmt: skip
    return [forward, *backward]


def variants() -> list[Variant]:
    """The forward and backward launches of every call of :data:`CALLS`."""
    return [Variant(f"{call.variant}, Dh={call.dim}", call.dtype, launches(call)) for call in CALLS]
