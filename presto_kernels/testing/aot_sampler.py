"""The Triton launches of the sampler family that :mod:`presto_kernels.testing.aot` compiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from presto_kernels.testing.aot import Variant


@dataclass(frozen=True)
class Call:
    """One call of an op of the sampler family, on x [2, tokens, 64].

    ``each``: sigma, and for renoise seed and offset, as tensors.  ``gradients``: which the backward is asked for, "F",
    "x" and "s" (sigma).  ``rows``: every other row of a longer x, so that a sample is not dense.
    """

    op: str
    variant: str = ""
    output_dtype: torch.dtype | None = None
    each: bool = False
    gradients: str = "Fx"
    rows: bool = False
    tokens: int = 1379


CALLS = (
    *((Call(op), dtype) for op in ("edm_denoise", "renoise") for dtype in (torch.float32, torch.bfloat16)),
    (Call("edm_denoise", "F bf16", output_dtype=torch.bfloat16), torch.float32),
    (Call("edm_denoise", "with dsigma", gradients="Fxs"), torch.float32),
    (Call("edm_denoise", "with dsigma", gradients="Fxs"), torch.bfloat16),
    (Call("renoise", "seed by sample", each=True, gradients="s"), torch.float32),
    (Call("renoise", "sigma wanted", gradients="s"), torch.bfloat16),
    (Call("edm_denoise", "rows", rows=True), torch.float32),
    (Call("renoise", "rows", rows=True, gradients="s"), torch.float32),
)


def launches(call: Call, dtype: torch.dtype, *, batch: int = 2) -> list[Any]:
    """The forward and backward launches of a call, on tensors that hold no data."""
    from presto_kernels.ops.sampler import triton_kernels

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    shape = (batch, call.tokens, 64)
    x = empty(batch, 2 * call.tokens, 64)[:, ::2] if call.rows else empty(*shape)
    out, sigma = empty(*shape), empty(batch, dtype=torch.float32)
    wanted = {name: name in call.gradients for name in "Fxs"}
    if call.op == "edm_denoise":
        output = empty(*shape, dtype=call.output_dtype or dtype)
        numbers: dict[str, Any] = {"sigma_data": 0.5, "sigma_min": 0.0}
        forward = triton_kernels.plan_edm_denoise(output, x, sigma, out, **numbers)
        gradients = (output if wanted["F"] else None, out if wanted["x"] else None, sigma if wanted["s"] else None)
        return [*forward, *triton_kernels.plan_edm_denoise_backward(x, output, x, sigma, *gradients, **numbers)]
    each = empty(batch, dtype=torch.int64) if call.each else None
    forward = triton_kernels.plan_renoise(x, sigma if call.each else None, 1.0, each, 7, each, 1, 1.0, out)
    backward = triton_kernels.plan_renoise_backward(x, each, 7, each, 1, sigma) if wanted["s"] else []
    return [*forward, *backward]


def variants() -> list[Variant]:
    """The forward and backward launches of every call of :data:`CALLS`."""
    return [
        Variant(f"{call.op}{call.variant and f', {call.variant}'}", dtype, launches(call, dtype))
        for call, dtype in CALLS
    ]
