"""The Triton launches of the AdaLN family that :mod:`presto_kernels.testing.aot` compiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from presto_kernels.testing.aot import Variant


@dataclass(frozen=True)
class Call:
    """One call of an op of the AdaLN family.  Modulations: "B" per sample, "N" per token, "D" for all, None absent."""

    variant: str
    branch: bool = True
    norm: str | None = "layer"
    gate_fn: str = "identity"
    gate: str | None = "B"
    scale: str | None = "B"
    shift: str | None = "B"
    weight: str | None = None
    bias: str | None = None
    residual2: str | None = None


_SEAM = Call("gated_residual_adaln")
_ADALN = replace(_SEAM, variant="adaln_modulate", branch=False, gate=None)
_GATED = replace(_SEAM, variant="gated_residual", norm=None, scale=None, shift=None)
# (call, dtype, D)
CALLS = (
    *((call, dtype, 1024) for dtype in (torch.bfloat16, torch.float32) for call in (_SEAM, _ADALN, _GATED)),
    (_SEAM, torch.bfloat16, 1000),
    (replace(_SEAM, variant="gated_residual_adaln, weight and bias", weight="D", bias="D"), torch.bfloat16, 1024),
    (replace(_SEAM, variant="gated_residual_adaln, per token", gate="N", scale="N", shift="N"), torch.bfloat16, 1024),
    (replace(_ADALN, variant="adaln_modulate, rms, weight", norm="rms", weight="D"), torch.bfloat16, 1024),
    (replace(_GATED, variant="gated_residual, sigmoid", gate_fn="sigmoid_one_minus"), torch.bfloat16, 1024),
    (
        replace(_ADALN, variant="adaln_modulate, dyt, weight and bias", norm="dyt", weight="D", bias="D"),
        torch.bfloat16,
        1024,
    ),
    (replace(_SEAM, variant="gated_residual_adaln, dyt", norm="dyt"), torch.bfloat16, 1024),
    (replace(_SEAM, variant="gated_residual_adaln, dyt, residual2", norm="dyt", residual2="N"), torch.float32, 1024),
    (replace(_SEAM, variant="gated_residual_adaln, residual2", residual2="N"), torch.bfloat16, 1024),
    (replace(_SEAM, variant="gated_residual_adaln, residual2 per sample", residual2="B"), torch.bfloat16, 1024),
)


def launches(call: Call, dtype: torch.dtype, dim: int, *, batch: int = 2, tokens: int = 33) -> list[Any]:
    """The forward and backward launches of a call, on tensors that hold no data."""
    from presto_kernels.ops.modulation import operators, triton_kernels

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def modulation(kind: str | None) -> Tensor | None:
        return None if kind is None else empty(*{"B": (batch, dim), "N": (batch, tokens, dim), "D": (dim,)}[kind])

    x, stats = empty(batch, tokens, dim), empty(batch, tokens, 2, dtype=torch.float32)
    branch = x if call.branch else None
    norm, gate_fn = operators.NORMS[call.norm], operators.GATE_FNS[call.gate_fn]
    kinds = (call.gate, call.scale, call.shift, call.weight, call.bias, call.residual2)
    gate, scale, shift, weight, bias, residual2 = map(modulation, kinds)
    alpha = empty(1) if call.norm == "dyt" else None
    forward = triton_kernels.plan_forward(
        x, branch, gate, scale, shift, weight, bias, alpha, residual2,
        branch, x if norm else None, stats if operators.has_stats(norm) else None,
        norm=norm, gate_fn=gate_fn, eps=1e-6,
    )  # fmt: skip
    owners = {
        "x": x, "branch": branch, "gate": gate, "scale": scale, "shift": shift, "weight": weight, "bias": bias,
        "alpha": alpha, "residual2": residual2 if call.residual2 != "N" else None,
    }  # fmt: skip
    backward = triton_kernels.plan_backward(
        branch, x if norm else None, x, stats, branch, gate, scale, weight, bias, alpha,
        {name: owner for name, owner in owners.items() if owner is not None},
        norm=norm, gate_fn=gate_fn, multiprocessors=132,
    )  # fmt: skip
    return [forward, *backward]


def variants() -> list[Variant]:
    """The forward and backward launches of every call of :data:`CALLS`."""
    return [Variant(f"{call.variant}, D={dim}", dtype, launches(call, dtype, dim)) for call, dtype, dim in CALLS]
