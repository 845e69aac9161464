"""The AdaLN family in Triton: ``presto_kernels::seam_triton`` and its backward, launch parameters and limits.

The kernels are in :mod:`presto_kernels.ops.modulation.triton_jit`, with what they compute, round, move and cannot do.
Importing this module needs triton and registers the operators, for CUDA tensors and, where Triton runs in its
interpreter (TRITON_INTERPRET=1), for CPU tensors too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from presto_kernels.ops.modulation import operators
from presto_kernels.ops.modulation.triton_jit import seam_backward_rows, seam_backward_sums, seam_forward
from presto_kernels.ops.triton_common import Launch, implement, multiprocessors, on


@dataclass(frozen=True)
class Knobs:
    """Launch parameters, chosen by counting registers and bytes in flight in the compiled code, not by a stopwatch."""

    # Elements of a row a thread holds.  Forward, 16: two 16-byte accesses of bf16 (four of fp32) per tensor are in
    # flight and a 1024-wide kernel takes 48 registers.  Backward, 8: it holds six rows and up to five column sums, 96
    # to 128 registers at a width of 1024; at 16 it took 161 to 255 and spilled in fp32.
    forward_elements: int = 16
    backward_elements: int = 8
    # Rows are grouped until they fill so many warps.  Forward, one: nothing is kept from row to row, so small programs
    # spread best.  Backward, eight: a program's column sums cost 8 D bytes each, paid once for all its rows.
    forward_warps: int = 1
    backward_warps: int = 8
    # Wider rows take more warps, up to 16: 32 would leave a thread 64 registers, and the backward spills there.
    max_warps: int = 16
    # Narrow rows are grouped up to so many: more, and programs of a short sequence would be mostly masked.
    max_group: int = 32
    # Programs of the backward per multiprocessor: two of 8 warps at 128 registers a thread are what fits at once.
    programs_per_multiprocessor: int = 2
    # Said aloud, because ptxas left to itself may spill to get below 40 registers, for programs that are not launched.
    backward_registers: int = 128
    # Second kernel of the backward: columns a program, and terms it loads at a time: 4 loads of 16 bytes a thread.
    sum_columns: int = 64
    sum_terms: int = 32
    sum_warps: int = 4


KNOBS = Knobs()
MAX_DIM = 32 * KNOBS.max_warps * KNOBS.forward_elements
MAX_ROWS = 2**31 - 2**16  # row numbers are 32-bit, with room for the last program's masked rows


def limits(dim: int) -> str | None:
    """Why rows of ``dim`` elements cannot be taken, or None."""
    return f"rows of {dim} elements are wider than {MAX_DIM}, what one program holds" if dim > MAX_DIM else None


# All whose gradients are sums over rows; alpha's is one over columns too.
_MODULATIONS = ("gate", "scale", "shift", "weight", "bias", "alpha", "residual2")
_BY_TOKEN = ("gate", "scale", "shift", "residual2")  # of these a gradient may have a row per token


def _tile(dim: int, elements: int, warps: int) -> tuple[dict[str, int], int]:
    """(D, BLOCK_D and GROUP, warps): as many rows as fill ``warps``, more warps for a wide row."""
    per_warp = 32 * elements
    block = max(16, triton.next_power_of_2(dim))
    group = min(max(1, warps * per_warp // block), KNOBS.max_group)
    return {"D": dim, "BLOCK_D": block, "GROUP": group}, min(max(1, group * block // per_warp), KNOBS.max_warps)


def _strides(t: Tensor | None) -> tuple[int, int]:
    """(batch, row) strides of x, a branch or a modulation; 0 along an axis that it is shared on."""
    if t is None or t.dim() == 1:
        return 0, 0
    row = t.stride(1) if t.dim() == 3 and t.shape[1] > 1 else 0
    return t.stride(0) if t.shape[0] > 1 else 0, row


def _readable(t: Tensor | None) -> Tensor | None:
    """The tensor itself if its rows are contiguous, else a contiguous copy."""
    return t if t is None or t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _vector(tensors: dict[str, Tensor | None]) -> bool:
    """Whether every row of every tensor begins and ends at a multiple of 16 bytes."""
    return all(
        steps * t.element_size() % 16 == 0
        for t in tensors.values()
        if t is not None
        for steps in (t.data_ptr() // t.element_size(), t.shape[-1], *_strides(t))
    )


def _arguments(tensors: dict[str, Tensor | None]) -> dict[str, Any]:
    """Each tensor and its two strides, under the names that the kernels give them."""
    arguments: dict[str, Any] = dict(tensors)
    for name, t in tensors.items():
        arguments[f"{name}_batch"], arguments[f"{name}_row"] = _strides(t)
    return arguments


def plan_forward(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor | None,
    residual2: Tensor | None,
    x_new: Tensor | None,
    h: Tensor | None,
    stats: Tensor | None,
    *,
    norm: int,
    gate_fn: int,
    eps: float,
) -> Launch:
    """The forward launch that writes x_new, h and stats (each None where there is none)."""
    names = ("x", "branch", "gate", "scale", "shift", "weight", "bias", "residual2")
    given = (x, branch, gate, scale, shift, weight, bias, residual2)
    tensors = {k: _readable(t) for k, t in zip(names, given, strict=True)}
    batch, tokens, dim = x.shape
    tile, warps = _tile(dim, KNOBS.forward_elements, KNOBS.forward_warps)
    arguments = _arguments(tensors) | tile
    arguments |= {"alpha": alpha, "x_new": x_new, "h": h, "stats": stats}
    arguments |= {"rows": batch * tokens, "tokens": tokens, "eps": eps}
    arguments |= {"NORM": norm, "GATE_FN": gate_fn, "VECTOR": _vector(tensors)}  # x_new and h are as wide as x
    return Launch(seam_forward, (triton.cdiv(batch * tokens, tile["GROUP"]),), arguments, warps)


def _per_token(t: Tensor, tokens: int) -> bool:
    return t.dim() == 3 and t.shape[1] == tokens > 1


def plan_backward(
    grad_x: Tensor | None,
    grad_h: Tensor | None,
    x: Tensor,
    stats: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor | None,
    grads: dict[str, Tensor],
    *,
    norm: int,
    gate_fn: int,
    multiprocessors: int,
) -> list[Launch]:
    """The launches, in order, that write ``grads`` ("x", "branch", "gate", ...: only those wanted)."""
    names = ("grad_x", "grad_h", "x", "branch", "gate", "scale", "weight", "bias")
    given = (grad_x, grad_h, x, branch, gate, scale, weight, bias)
    tensors = {k: _readable(t) for k, t in zip(names, given, strict=True)}
    batch, tokens, dim = x.shape
    tile, warps = _tile(dim, KNOBS.backward_elements, KNOBS.backward_warps)
    group = tile["GROUP"]
    programs = KNOBS.programs_per_multiprocessor * multiprocessors
    chunk = triton.cdiv(min(triton.cdiv(batch * tokens, programs), tokens), group) * group
    chunks = triton.cdiv(tokens, chunk)
    vector = _vector(tensors | {f"gradient of {name}": grad for name, grad in grads.items() if name != "alpha"})

    # What the first kernel writes for each modulation, and the sums that are left: (terms, step, rows, columns).
    written: dict[str, Tensor | None] = dict.fromkeys(_MODULATIONS)
    sums: dict[tuple[int, int, int, int], list[str]] = {}
    for name in _MODULATIONS:
        grad = grads.get(name)
        if grad is None:
            continue
        shared = batch == 1 or grad.dim() <= 1 or grad.shape[0] == 1
        if not _per_token(grad, tokens):
            columns = 1 if name == "alpha" else dim
            written[name] = x.new_empty((batch * chunks, columns), dtype=torch.float32)
            rows = (batch * chunks, 0, 1, columns) if shared else (chunks, chunks, batch, columns)
            sums.setdefault(rows, []).append(name)
        elif grad.shape[0] == batch and name in _BY_TOKEN:
            written[name] = grad
        else:
            raise ValueError(f"{name}: a row per token must come as [B, N, D] and not for weight or bias")

    arguments = _arguments(tensors) | tile
    arguments |= {f"d{name}": written[name] for name in _MODULATIONS}
    arguments |= {"dx": grads.get("x"), "dbranch": grads.get("branch"), "stats": stats, "alpha": alpha}
    arguments |= {"tokens": tokens, "chunk": chunk, "chunks": chunks}
    arguments |= {f"{name.upper()}_PER_TOKEN": name in grads and _per_token(grads[name], tokens) for name in _BY_TOKEN}
    arguments |= {"NORM": norm, "GATE_FN": gate_fn, "VECTOR": vector}
    launches = [Launch(seam_backward_rows, (batch * chunks,), arguments, warps, KNOBS.backward_registers)]
    for (terms, step, groups, columns), members in sums.items():
        arguments = {f"{name}_rows": written[name] if name in members else None for name in _MODULATIONS}
        arguments |= {f"d{name}": grads[name] if name in members else None for name in _MODULATIONS}
        arguments |= {"terms": terms, "step": step, "D": columns, "VECTOR": vector and columns == dim}
        arguments |= {"TERMS": KNOBS.sum_terms, "COLS": KNOBS.sum_columns}
        grid = (groups, triton.cdiv(columns, KNOBS.sum_columns))
        launches.append(Launch(seam_backward_sums, grid, arguments, KNOBS.sum_warps))
    return launches


def _check_size(x: Tensor) -> None:
    if x.shape[0] * x.shape[1] > MAX_ROWS:
        raise ValueError(f"x: {list(x.shape)} has more than {MAX_ROWS} rows; split the batch")
    reason = limits(x.shape[2])
    if reason:
        raise ValueError(f"x: {reason}")


def _seam(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor | None,
    residual2: Tensor | None,
    norm: int,
    gate_fn: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_size(x)
    x_new = x.new_empty(x.shape) if branch is not None else None
    h = x.new_empty(x.shape) if norm else None
    stats = x.new_empty((x.shape[0], x.shape[1], 2), dtype=torch.float32) if operators.has_stats(norm) else None
    if x.numel():
        with on(x.device):
            plan_forward(
                x, branch, gate, scale, shift, weight, bias, alpha, residual2, x_new, h, stats,
                norm=norm, gate_fn=gate_fn, eps=eps,
            ).run()  # fmt: skip
    return (
        x.new_empty(0) if x_new is None else x_new,
        x.new_empty(0) if h is None else h,
        x.new_empty(0, dtype=torch.float32) if stats is None else stats,
    )


def _seam_backward(
    grad_x: Tensor | None,
    grad_h: Tensor | None,
    x: Tensor,
    stats: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: Tensor | None,
    residual2: Tensor | None,
    norm: int,
    gate_fn: int,
    needs: int,
) -> tuple[Tensor, ...]:
    _check_size(x)
    if grad_h is None:
        norm = operators.NORMS[None]
    given = (x, branch, gate, scale, shift, weight, bias, alpha, residual2)
    owners = dict(zip(("x", "branch", *_MODULATIONS), given, strict=True))
    grads = {
        name: owner.new_empty(owner.shape)
        for bit, (name, owner) in enumerate(owners.items())
        if needs >> bit & 1 and owner is not None
    }
    # What no incoming gradient reaches is zero, and needs no kernel.
    reached = {"x", "branch"} if norm or grad_x is not None else set()
    reached |= {"gate", "residual2"} if reached and branch is not None else set()
    reached |= {"scale", "shift", "weight", "bias", "alpha"} if norm else set()
    wanted = {name: grad for name, grad in grads.items() if name in reached and x.numel()}
    for name, grad in grads.items():
        if name not in wanted:
            grad.zero_()
    if wanted:
        with on(x.device):
            for launch in plan_backward(
                grad_x,
                grad_h if norm else None,
                x,
                stats.contiguous(),
                branch if "gate" in wanted else None,
                gate if "branch" in wanted or gate_fn else None,
                scale if norm else None,
                weight if norm else None,
                bias if "scale" in wanted else None,
                alpha if norm else None,
                wanted,
                norm=norm,
                gate_fn=gate_fn,
                multiprocessors=multiprocessors(x.device),
            ):
                launch.run()
    return tuple(grads[name] if name in grads else x.new_empty(0) for name in owners)


implement("seam_triton", _seam)
implement("seam_backward_triton", _seam_backward)
