"""The Triton launches of the activations that :mod:`presto_kernels.testing.aot` compiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from presto_kernels.testing.aot import Variant

GLU = (("swiglu", 0), ("geglu", 1), ("singlu", 2))
DTYPES = (torch.bfloat16, torch.float32)


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def glu_launches(
    act: int, dtype: torch.dtype, dim: int, *, batch: int = 2, tokens: int = 33, gate_first: bool = False
) -> list[Any]:
    """The forward and backward launches of a gated activation, on tensors that hold no data."""
    from presto_kernels.ops.activation import triton_kernels

    x, y = _empty(batch, tokens, 2 * dim, dtype=dtype), _empty(batch, tokens, dim, dtype=dtype)
    return [
        triton_kernels.plan_glu(x, y, act=act, gate_first=gate_first),
        triton_kernels.plan_glu_backward(y, x, x, act=act, gate_first=gate_first),
    ]


def snake_launches(dtype: torch.dtype, length: int, *, batch: int = 2, channels: int = 24) -> list[Any]:
    """The forward and backward launches of a snake with fp32 parameters."""
    from presto_kernels.ops.activation import triton_kernels

    x, alpha = _empty(batch, channels, length, dtype=dtype), _empty(channels, dtype=torch.float32)
    return [
        triton_kernels.plan_snake(x, alpha, alpha, x),
        *triton_kernels.plan_snake_backward(x, x, alpha, alpha, x, alpha, alpha),
    ]


def variants() -> list[Variant]:
    """Every op in bf16 and fp32 on aligned rows, and on rows of an odd length in bf16."""
    made = [Variant(f"{name}, D=2816", dtype, glu_launches(act, dtype, 2816)) for name, act in GLU for dtype in DTYPES]
    made += [Variant("snake, T=110080", dtype, snake_launches(dtype, 110080)) for dtype in DTYPES]
    made += [Variant("swiglu, D=1365", torch.bfloat16, glu_launches(0, torch.bfloat16, 1365))]
    made += [Variant("snake, T=1379", torch.bfloat16, snake_launches(torch.bfloat16, 1379))]
    return made
