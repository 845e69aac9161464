"""Head norm and rotary in Triton: ``presto_kernels::qk_norm_rope_triton`` and its backward, launch parameters, limits.

The kernels are in :mod:`presto_kernels.ops.rotary.triton_jit`, with what they compute, round, move and cannot do.
Importing this module needs triton and registers the operators, for CUDA tensors and, where Triton runs in its
interpreter (TRITON_INTERPRET=1), for CPU tensors too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from presto_kernels.ops.rotary import operators
from presto_kernels.ops.rotary.triton_jit import rotary_backward_rows, rotary_backward_sums, rotary_forward
from presto_kernels.ops.triton_common import Launch, implement, on


@dataclass(frozen=True)
class Knobs:
    """Launch parameters, chosen by counting registers and bytes in flight in the compiled code, not by a stopwatch."""

    warps: int = 4
    # Elements of x a thread holds: two accesses of 16 bytes in bf16, and 32 heads of 64 a program, so that the heads of
    # a token share its cos and sin.
    elements: int = 16
    # Said aloud, because ptxas left to itself may spill to fit one more program on a multiprocessor.
    forward_registers: int = 96
    backward_registers: int = 192
    # Heads of a few elements are grouped up to so many: more, and programs of a short sequence would be mostly masked.
    max_group: int = 64
    # Programs a side's backward is cut into, at most: about four for each of an H200's 132 multiprocessors.
    max_programs: int = 512
    # Second kernel of the backward: columns a program, and terms it loads at a time: 4 loads of 16 bytes a thread.
    sum_columns: int = 64
    sum_terms: int = 32


KNOBS = Knobs()
MAX_DIM = 2048
MAX_ROWS = 2**31 - 2**23  # row numbers are 32-bit, with room for the masked rows of the backward's last program


def limits(dim: int) -> str | None:
    """Why heads of ``dim`` elements cannot be taken, or None."""
    return f"heads of {dim} elements are wider than {MAX_DIM}, what one program holds" if dim > MAX_DIM else None


def _readable(t: Tensor | None) -> Tensor | None:
    """The tensor itself if neighbours within a head lie side by side, else a contiguous copy."""
    return t if t is None or t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _strides(t: Tensor | None, axes: int) -> tuple[int, ...]:
    """Strides of all axes but the last, 0 where there is one element or nothing."""
    if t is None:
        return (0,) * axes
    return tuple(t.stride(i) if t.shape[i] > 1 else 0 for i in range(axes))


def _vector(dim: int, half: int, tensors: list[Tensor | None]) -> bool:
    """Whether every part of every row of every tensor begins and ends at a multiple of 16 bytes."""
    return all(
        steps * t.element_size() % 16 == 0
        for t in tensors
        if t is not None
        for steps in (t.data_ptr() // t.element_size(), dim, half, *t.stride()[:-1])
    )


def _tile(dim: int, half: int, interleaved: bool) -> dict[str, Any]:
    """DIM, HALF (of the head, where there is no rotary), their blocks and the heads of a program."""
    half = half or dim // 2
    block, rest = triton.next_power_of_2(max(1, half)), triton.next_power_of_2(max(1, dim - 2 * half))
    group = KNOBS.warps * 32 * KNOBS.elements // max(16, triton.next_power_of_2(dim))
    return {
        "DIM": dim,
        "HALF": half,
        "BLOCK": block,
        "BLOCK_REST": rest,
        "GROUP": max(1, min(group, KNOBS.max_group)),
        "INTERLEAVED": interleaved,
    }


def _half(cos: Tensor | None) -> int:
    return 0 if cos is None else cos.shape[1]


def _tables(tables: tuple[Tensor | None, ...], k: Tensor | None) -> dict[str, Any]:
    """The four tables and their row strides; k's are q's where it has none of its own."""
    cos, sin, *of_k = tables
    if of_k[0] is None:
        of_k = [cos, sin]
    given = (cos, sin, *(of_k if k is not None else (None, None)))
    arguments: dict[str, Any] = {}
    for name, t in zip(("cos", "sin", "k_cos", "k_sin"), given, strict=True):
        t = _readable(t)
        arguments |= {name: t, f"{name}_row": _strides(t, 1)[0]}
    return arguments


def _heads(name: str, t: Tensor | None) -> dict[str, Any]:
    batch, token, head = _strides(t, 3)
    return {name: t, f"{name}_batch": batch, f"{name}_token": token, f"{name}_head": head}


def _side(name: str, t: Tensor | None) -> dict[str, Any]:
    """What the kernels know of q's or k's size."""
    if t is None:
        return {f"{name}_rows": 0, f"{name}_tokens": 1, f"{name.upper()}_HEADS": 1}
    batch, tokens, heads, _ = t.shape
    return {f"{name}_rows": batch * tokens * heads, f"{name}_tokens": tokens, f"{name.upper()}_HEADS": max(1, heads)}


def plan_forward(
    q: Tensor,
    k: Tensor | None,
    tables: tuple[Tensor | None, ...],
    affine: tuple[Tensor | None, ...],
    alphas: tuple[Tensor | None, ...],
    q_out: Tensor,
    k_out: Tensor | None,
    *,
    norm: int,
    eps: float,
    interleaved: bool,
) -> Launch:
    """The launch that writes q_out and k_out.

    ``tables`` are cos, sin, k_cos, k_sin, ``affine`` the two weights and the two biases, ``alphas`` q's and k's.
    """
    q_read, k_read = _readable(q), _readable(k)
    affine = tuple(map(_readable, affine))
    dim, half = q.shape[3], _half(tables[0])
    arguments = _tile(dim, half, interleaved) | _tables(tables, k) | _heads("q", q_read) | _heads("k", k_read)
    arguments |= _side("q", q) | _side("k", k)
    arguments |= dict(zip(("q_weight", "k_weight", "q_bias", "k_bias"), affine, strict=True))
    arguments |= dict(zip(("q_alpha", "k_alpha"), alphas, strict=True))
    group = arguments["GROUP"]
    q_programs, k_programs = (triton.cdiv(arguments[f"{side}_rows"], group) for side in "qk")
    read = [q_read, k_read, *affine, *(arguments[name] for name in ("cos", "sin", "k_cos", "k_sin"))]
    arguments |= {"q_out": q_out, "k_out": k_out, "q_programs": q_programs, "eps": eps, "NORM": norm}
    arguments["VECTOR"] = _vector(dim, arguments["HALF"], [*read, q_out, k_out])
    return Launch(rotary_forward, (q_programs + k_programs,), arguments, KNOBS.warps, KNOBS.forward_registers)


def plan_backward(
    grad_q: Tensor | None,
    grad_k: Tensor | None,
    q: Tensor | None,
    k: Tensor | None,
    tables: tuple[Tensor | None, ...],
    weights: tuple[Tensor | None, ...],
    alphas: tuple[Tensor | None, ...],
    grads: dict[str, Tensor],
    *,
    norm: int,
    eps: float,
    interleaved: bool,
) -> list[Launch]:
    """The launches, in order, that write ``grads`` ("q", "k", "q_weight", ...: only those wanted)."""
    grad_q, grad_k, q, k = (_readable(t) for t in (grad_q, grad_k, q, k))
    weights = tuple(map(_readable, weights))
    like = grad_q if grad_q is not None else grad_k
    assert like is not None
    dim, half = like.shape[3], _half(tables[0])
    arguments = _tile(dim, half, interleaved) | _tables(tables, grad_k)
    for name, t in (("grad_q", grad_q), ("grad_k", grad_k), ("q", q), ("k", k)):
        arguments |= _heads(name, t)
    arguments |= _side("q", grad_q) | _side("k", grad_k)
    arguments |= dict(zip(("q_weight", "k_weight", "q_alpha", "k_alpha"), (*weights, *alphas), strict=True))
    programs: dict[str, int] = {}
    sums: dict[str, Tensor | None] = {}
    group = arguments["GROUP"]
    for side in "qk":
        groups = triton.cdiv(arguments[f"{side}_rows"], group)
        chunk = triton.cdiv(groups, KNOBS.max_programs) * group
        programs[side] = triton.cdiv(arguments[f"{side}_rows"], chunk) if groups else 0
        arguments[f"{side}_chunk"] = chunk
        arguments[f"d{side}"] = grads.get(side)
        for kind, width in (("weight", dim), ("bias", dim), ("alpha", 1)):
            wanted = f"{side}_{kind}" in grads
            sums[f"{side}_{kind}"] = like.new_empty((programs[side], width), dtype=torch.float32) if wanted else None
            arguments[f"d{side}_{kind}"] = sums[f"{side}_{kind}"]
    arguments |= {"q_programs": programs["q"], "eps": eps, "NORM": norm}
    read = [grad_q, grad_k, q, k, *weights, *(arguments[name] for name in ("cos", "sin", "k_cos", "k_sin"))]
    written = [t for name, t in (*grads.items(), *sums.items()) if not name.endswith("_alpha")]
    vector = _vector(dim, arguments["HALF"], [*read, *written])
    arguments["VECTOR"] = vector
    rows_grid = (programs["q"] + programs["k"],)
    launches = [Launch(rotary_backward_rows, rows_grid, arguments, KNOBS.warps, KNOBS.backward_registers)]
    if any(t is not None for t in sums.values()):
        arguments = {f"d{name}": grads.get(name) for name in sums}
        arguments |= {f"{name}_rows": t for name, t in sums.items()}
        arguments |= {"q_terms": programs["q"], "k_terms": programs["k"], "DIM": dim, "VECTOR": vector}
        arguments |= {"TERMS": KNOBS.sum_terms, "COLS": KNOBS.sum_columns}
        grid = (triton.cdiv(dim, KNOBS.sum_columns), 6 if norm == operators.NORMS["dyt"] else 4)
        launches.append(Launch(rotary_backward_sums, grid, arguments, KNOBS.warps))
    return launches


def _check_size(*heads: Tensor | None) -> None:
    for t in heads:
        if t is None:
            continue
        if t.shape[0] * t.shape[1] * t.shape[2] > MAX_ROWS:
            raise ValueError(f"q, k: {list(t.shape)} has more than {MAX_ROWS} heads; split the batch")
        reason = limits(t.shape[3])
        if reason:
            raise ValueError(f"q, k: {reason}")


def _qk_norm_rope(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    k_cos: Tensor | None,
    k_sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    q_bias: Tensor | None,
    k_bias: Tensor | None,
    q_alpha: Tensor | None,
    k_alpha: Tensor | None,
    norm: int,
    eps: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    _check_size(q, k)
    q_out = q.new_empty(q.shape)
    k_out = None if k is None else k.new_empty(k.shape)
    if q.numel() or (k is not None and k.numel()):
        tables, affine = (cos, sin, k_cos, k_sin), (q_weight, k_weight, q_bias, k_bias)
        options: dict[str, Any] = {"norm": norm, "eps": eps, "interleaved": interleaved}
        with on(q.device):
            plan_forward(q, k, tables, affine, (q_alpha, k_alpha), q_out, k_out, **options).run()
    return q_out, q.new_empty(0) if k_out is None else k_out


def _qk_norm_rope_backward(
    grad_q: Tensor | None,
    grad_k: Tensor | None,
    q: Tensor | None,
    k: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    k_cos: Tensor | None,
    k_sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    q_bias: Tensor | None,
    k_bias: Tensor | None,
    q_alpha: Tensor | None,
    k_alpha: Tensor | None,
    norm: int,
    eps: float,
    interleaved: bool,
    needs: int,
) -> tuple[Tensor, ...]:
    _check_size(grad_q, grad_k)
    like = grad_k if grad_q is None else grad_q
    assert like is not None
    owners = {
        "q": grad_q, "k": grad_k, "q_weight": q_weight, "k_weight": k_weight, "q_bias": q_bias, "k_bias": k_bias,
        "q_alpha": q_alpha, "k_alpha": k_alpha,
    }  # fmt: skip
    grads = {
        name: owner.new_empty(owner.shape)
        for bit, (name, owner) in enumerate(owners.items())
        if needs >> bit & 1 and owner is not None
    }
    given = {"q": (grad_q, q, q_weight), "k": (grad_k, k, k_weight)}
    for side, (grad, x, weight) in given.items():
        of_side = [name for name in grads if name[0] == side]
        if grad is None or not grad.numel():
            for name in of_side:
                grads[name].zero_()
        if grad is None or not grad.numel() or not of_side:
            given[side] = (None, None, None)
        elif norm == operators.NORMS[None] and weight is None:
            given[side] = (grad, None, None)  # what is turned back is the gradient alone
        else:
            assert x is not None
    wanted = {name: t for name, t in grads.items() if given[name[0]][0] is not None}
    if wanted:
        with on(like.device):
            for launch in plan_backward(
                given["q"][0],
                given["k"][0],
                given["q"][1],
                given["k"][1],
                (cos, sin, k_cos, k_sin),
                (given["q"][2], given["k"][2]),
                (q_alpha, k_alpha),
                wanted,
                norm=norm,
                eps=eps,
                interleaved=interleaved,
            ):
                launch.run()
    return tuple(grads[name] if name in grads else like.new_empty(0) for name in owners)


implement("qk_norm_rope_triton", _qk_norm_rope)
implement("qk_norm_rope_backward_triton", _qk_norm_rope_backward)
