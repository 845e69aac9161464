"""The activations in Triton: ``presto_kernels::glu_triton``, ``snake_triton`` and their backward, launch parameters and
limits.

The kernels are in :mod:`presto_kernels.ops.activation.triton_jit`, with what they compute, round, move and cannot do.
Importing this module needs triton and registers the operators, for CUDA tensors and, where Triton runs in its
interpreter (TRITON_INTERPRET=1), for CPU tensors too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
from torch import Tensor, float32

from presto_kernels.ops.activation.triton_jit import (
    glu_backward,
    glu_forward,
    snake_backward,
    snake_backward_sums,
    snake_forward,
)
from presto_kernels.ops.triton_common import Launch, implement, on


@dataclass(frozen=True)
class Knobs:
    """Launch parameters, chosen by counting registers and bytes in flight in the compiled code, not by a stopwatch."""

    # Elements of y a program of glu computes: with 4 warps a thread has 8, in bf16 one access of 16 bytes for each half
    # of the row.  Narrow rows are grouped until they fill it.
    glu_elements: int = 1024
    # Elements of a row a program of snake computes at a time.  Forward a thread has 16, two accesses of 16 bytes in
    # flight in bf16; backward 8, of two tensors.
    forward_elements: int = 2048
    backward_elements: int = 1024
    # Elements a program of the backward sums: 110080 of a row are 14 programs.
    chunk: int = 8192
    # Second kernel of the backward: sums it loads at a time.
    sum_terms: int = 256
    warps: int = 4


KNOBS = Knobs()
MAX_ROWS = 2**31 - 2**16  # row and program numbers are 32-bit, with room for the last program's masked rows
MAX_LENGTH = 2**31 - 2**16  # and so are columns


def glu_limits(rows: int, dim: int) -> str | None:
    """Why a gated activation of so many rows of 2 ``dim`` elements cannot be taken, or None."""
    if rows > MAX_ROWS:
        return f"more than {MAX_ROWS} rows"
    widest = 65535 * KNOBS.glu_elements  # blocks on the grid's second axis
    return f"rows of {dim} gated elements are wider than {widest}" if dim > widest else None


def snake_limits(rows: int, length: int) -> str | None:
    """Why a snake of so many rows cannot be taken, or None."""
    if length > MAX_LENGTH:
        return f"rows of {length} elements are longer than {MAX_LENGTH}"
    if rows * triton.cdiv(length, KNOBS.forward_elements) > MAX_ROWS:
        return f"more than {MAX_ROWS} blocks of {KNOBS.forward_elements} elements"
    return None


def _readable(t: Tensor) -> Tensor:
    """The tensor itself if its rows are contiguous, else a contiguous copy."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _vector(dim: int, *tensors: Tensor) -> bool:
    """Whether runs of ``dim`` elements of every tensor begin and end at multiples of 16 bytes."""
    return all(
        steps * t.element_size() % 16 == 0
        for t in tensors
        for steps in (t.data_ptr() // t.element_size(), dim, *_strides(t))
    )


def _strides(t: Tensor) -> tuple[int, int]:
    """(batch, row) strides; 0 along an axis of one."""
    return t.stride(0) if t.shape[0] > 1 else 0, t.stride(1) if t.shape[1] > 1 else 0


def _rows(**tensors: Tensor) -> dict[str, Any]:
    """Each tensor and its two strides, under the names that the kernels give them."""
    arguments: dict[str, Any] = dict(tensors)
    for name, t in tensors.items():
        arguments[f"{name}_batch"], arguments[f"{name}_row"] = _strides(t)
    return arguments


def _unit(x: Tensor) -> int:
    """Elements of 16 bytes."""
    return 16 // x.element_size()


def _plan_glu(kernel: Any, out: dict[str, Tensor], read: dict[str, Tensor], act: int, gate_first: bool) -> Launch:
    read = {name: _readable(t) for name, t in read.items()}
    x = read["x"]
    batch, tokens, width = x.shape
    dim = width // 2
    block = min(KNOBS.glu_elements, max(16, triton.next_power_of_2(dim)))
    group = KNOBS.glu_elements // block
    arguments = _rows(**read) | out | {"rows": batch * tokens, "tokens": tokens, "D": dim}
    arguments |= {"value_at": dim if gate_first else 0, "gate_at": 0 if gate_first else dim, "ACT": act}
    arguments |= {"BLOCK_D": block, "GROUP": group, "UNIT": _unit(x)}
    arguments |= {"VECTOR": _vector(dim, *read.values(), *out.values())}
    grid = (triton.cdiv(batch * tokens, group), triton.cdiv(dim, block))
    return Launch(kernel, grid, arguments, KNOBS.warps)


def plan_glu(x: Tensor, y: Tensor, *, act: int, gate_first: bool) -> Launch:
    """The launch that writes y [B, N, D]."""
    return _plan_glu(glu_forward, {"y": y}, {"x": x}, act, gate_first)


def plan_glu_backward(grad: Tensor, x: Tensor, dx: Tensor, *, act: int, gate_first: bool) -> Launch:
    """The launch that writes dx [B, N, 2 D]."""
    return _plan_glu(glu_backward, {"dx": dx}, {"grad": grad, "x": x}, act, gate_first)


def plan_snake(x: Tensor, alpha: Tensor, beta: Tensor, y: Tensor) -> Launch:
    """The launch that writes y [B, C, T]."""
    x = _readable(x)
    batch, channels, length = x.shape
    blocks = triton.cdiv(length, KNOBS.forward_elements)
    arguments = _rows(x=x) | {"alpha": alpha, "beta": beta, "y": y}
    arguments |= {"channels": channels, "length": length, "blocks": blocks}
    arguments |= {"alpha_stride": alpha.stride(0), "beta_stride": beta.stride(0)}
    arguments |= {"BLOCK": KNOBS.forward_elements, "UNIT": _unit(x), "VECTOR": _vector(length, x, y)}
    return Launch(snake_forward, (batch * channels * blocks,), arguments, KNOBS.warps)


def plan_snake_backward(
    grad: Tensor,
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    dx: Tensor | None,
    dalpha: Tensor | None,
    dbeta: Tensor | None,
) -> list[Launch]:
    """The launches, in order, that write dx, dalpha and dbeta (each None where it is not wanted)."""
    grad, x = _readable(grad), _readable(x)
    batch, channels, length = x.shape
    chunks = triton.cdiv(length, KNOBS.chunk)
    terms = batch * chunks
    sums = dalpha is not None or dbeta is not None
    products, squares = (x.new_empty((channels, terms), dtype=float32) if sums else None for _ in range(2))
    arguments = _rows(grad=grad, x=x) | {"alpha": alpha, "beta": beta, "dx": dx}
    arguments |= {"products": products, "squares": squares}
    arguments |= {"channels": channels, "length": length, "chunks": chunks, "terms": terms}
    arguments |= {"alpha_stride": alpha.stride(0), "beta_stride": beta.stride(0)}
    arguments |= {"CHUNK": KNOBS.chunk, "BLOCK": KNOBS.backward_elements, "UNIT": _unit(x)}
    arguments |= {"VECTOR": _vector(length, grad, x, *([] if dx is None else [dx]))}
    launches = [Launch(snake_backward, (batch * channels * chunks,), arguments, KNOBS.warps)]
    if sums:
        arguments = {"products": products, "squares": squares, "beta": beta, "dalpha": dalpha, "dbeta": dbeta}
        arguments |= {"terms": terms, "beta_stride": beta.stride(0), "TERMS": KNOBS.sum_terms}
        launches.append(Launch(snake_backward_sums, (channels,), arguments, KNOBS.warps))
    return launches


def _refuse(reason: str | None, x: Tensor) -> None:
    if reason:
        raise ValueError(f"x: {list(x.shape)}: {reason}")


def _glu(x: Tensor, act: int, gate_first: bool) -> Tensor:
    batch, tokens, width = x.shape
    _refuse(glu_limits(batch * tokens, width // 2), x)
    y = x.new_empty((batch, tokens, width // 2))
    if y.numel():
        with on(x.device):
            plan_glu(x, y, act=act, gate_first=gate_first).run()
    return y


def _glu_backward(grad: Tensor, x: Tensor, act: int, gate_first: bool) -> Tensor:
    _refuse(glu_limits(x.shape[0] * x.shape[1], x.shape[2] // 2), x)
    dx = x.new_empty(x.shape)
    if dx.numel():
        with on(x.device):
            plan_glu_backward(grad, x, dx, act=act, gate_first=gate_first).run()
    return dx


def _snake(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    _refuse(snake_limits(x.shape[0] * x.shape[1], x.shape[2]), x)
    y = x.new_empty(x.shape)
    if y.numel():
        with on(x.device):
            plan_snake(x, alpha, beta, y).run()
    return y


def _snake_backward(grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor, needs: int) -> tuple[Tensor, Tensor, Tensor]:
    _refuse(snake_limits(x.shape[0] * x.shape[1], x.shape[2]), x)
    wanted = [owner.new_empty(owner.shape) if needs >> bit & 1 else None for bit, owner in enumerate((x, alpha, beta))]
    if not x.numel():
        for gradient in wanted:
            if gradient is not None:
                gradient.zero_()
    elif needs:
        with on(x.device):
            for launch in plan_snake_backward(grad, x, alpha, beta, *wanted):
                launch.run()
    dx, dalpha, dbeta = (
        owner.new_empty(0) if gradient is None else gradient
        for gradient, owner in zip(wanted, (x, alpha, beta), strict=True)
    )
    return dx, dalpha, dbeta


implement("glu_triton", _glu)
implement("glu_backward_triton", _glu_backward)
implement("snake_triton", _snake)
implement("snake_backward_triton", _snake_backward)
