"""Attention in Triton: ``presto_kernels::attention_triton`` and its backward, launch parameters and limits.

The kernels are in :mod:`presto_kernels.ops.attention.triton_jit`, with what they compute, round, move and cannot do.
Importing this module needs triton and registers the operators, for CUDA tensors and, where Triton runs in its
interpreter (TRITON_INTERPRET=1), for CPU tensors too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from presto_kernels.ops.attention.triton_jit import (
    attention_backward_dkdv,
    attention_backward_dq,
    attention_delta,
    attention_forward,
    attention_qk_norm_rope_forward,
)
from presto_kernels.ops.triton_common import Launch, implement, on


@dataclass(frozen=True)
class Tile:
    """BLOCK_M queries beside BLOCK_N keys, on this many warps, with loads this many blocks ahead."""

    queries: int
    keys: int
    warps: int
    stages: int


# (bytes of an element, widest padded head dim) -> tile
Tiles = tuple[tuple[tuple[int, int], Tile], ...]


@dataclass(frozen=True)
class Knobs:
    """Launch parameters, chosen by counting registers and spills in the compiled code, not by a stopwatch.

    Half precision has the tiles that Hopper's matrix instruction wants (64 rows to four warps) and no spill there; with
    a window or at 128 sm_80 spills up to 72 bytes a thread, and sm_100 36 forward with both.  fp32 has small ones:
    three TF32 products take both factors split in two, and in registers.
    """

    # sm_90: 164 registers at a head dim of 64 and 214 at 128, with a window 229 and 251; 4 warps took 254.
    forward: Tiles = (
        ((2, 64), Tile(128, 64, 8, 3)),
        ((2, 128), Tile(128, 64, 8, 2)),
        ((4, 64), Tile(32, 32, 4, 2)),
        ((4, 128), Tile(16, 32, 4, 1)),
    )
    # sm_90: 226 registers at 64, 223 at 128: norming a block of keys takes some, and its loads go through them.
    qk_norm_rope: Tiles = (
        ((2, 64), Tile(128, 64, 8, 2)),
        ((2, 128), Tile(64, 32, 8, 2)),
        ((4, 64), Tile(32, 32, 4, 1)),
        ((4, 128), Tile(16, 16, 4, 1)),
    )
    # sm_90: 154 registers at 64 and 162 at 128, with a window 204 and 227.
    dq: Tiles = (
        ((2, 64), Tile(128, 64, 8, 2)),
        ((2, 128), Tile(128, 32, 8, 2)),
        ((4, 64), Tile(16, 32, 4, 1)),
        ((4, 128), Tile(16, 16, 4, 1)),
    )
    # sm_90, two accumulators: 255 registers at 64 and 209 at 128, where 64 queries spilled.
    dkdv: Tiles = (
        ((2, 64), Tile(64, 128, 8, 2)),
        ((2, 128), Tile(32, 64, 8, 2)),
        ((4, 64), Tile(16, 32, 8, 1)),
        ((4, 128), Tile(16, 16, 4, 1)),
    )
    # The same with a window, whose masks take registers: 227 and 218, where the tiles above spilled 84 and 148 bytes.
    dkdv_window: Tiles = (
        ((2, 64), Tile(32, 128, 8, 3)),
        ((2, 128), Tile(16, 32, 4, 2)),
        ((4, 64), Tile(16, 32, 8, 1)),
        ((4, 128), Tile(16, 16, 4, 1)),
    )
    # Rows of out and grad_out a program multiplies: 8 elements of each a thread at a head dim of 64.
    delta_rows: int = 16
    delta_warps: int = 4


KNOBS = Knobs()
MAX_DIM = 128
MAX_TOKENS = 2**30  # positions are 32-bit, with room for a window beyond them


def limits(
    q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, left: int, right: int, scale: float
) -> str | None:
    """Why a call cannot be taken, or None."""
    if q.shape[3] > MAX_DIM:
        return f"heads of {q.shape[3]} are wider than {MAX_DIM}, what one program holds"
    if not scale > 0:
        return f"scale must be positive, got {scale}"
    if q.shape[1] > MAX_TOKENS or k.shape[1] > MAX_TOKENS:
        return f"more than {MAX_TOKENS} tokens"
    if q.shape[0] * q.shape[2] * max(q.shape[1], k.shape[1]) > 2**31 * 16:
        return "more programs than a grid holds"
    return None


def _check(*call: Any) -> None:
    reason = limits(*call)
    if reason:
        raise ValueError(f"attention: {reason}")


def _readable(t: Tensor) -> Tensor:
    """The tensor itself if the elements of a head lie side by side, else a contiguous copy."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _strides(t: Tensor) -> tuple[int, ...]:
    """(batch, row, head) strides, 0 where there is only one."""
    return tuple(stride if size > 1 else 0 for size, stride in zip(t.shape[:3], t.stride()[:3], strict=True))


def _vector(*tensors: Tensor) -> bool:
    """Whether every head of every tensor begins and ends at a multiple of 16 bytes."""
    return all(
        steps * t.element_size() % 16 == 0
        for t in tensors
        for steps in (t.data_ptr() // t.element_size(), t.shape[-1], *_strides(t))
    )


def _arguments(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Each tensor and its three strides, under the names that the kernels give them."""
    arguments: dict[str, Any] = dict(tensors)
    for name, t in tensors.items():
        for axis, stride in zip(("batch", "row", "head"), _strides(t), strict=True):
            arguments[f"{name}_{axis}"] = stride
    return arguments


def _tile(knobs: Tiles, q: Tensor) -> tuple[Tile, dict[str, Any]]:
    """The tile, and what the kernel is compiled for because of it."""
    block_d = max(16, triton.next_power_of_2(q.shape[3]))
    tile = next(tile for (size, dim), tile in knobs if size == q.element_size() and block_d <= dim)
    constants = {"D": q.shape[3], "BLOCK_D": block_d, "BLOCK_M": tile.queries, "BLOCK_N": tile.keys}
    return tile, constants | {"PRECISION": "tf32x3" if q.dtype == torch.float32 else "tf32"}


def _mask(key_lengths: Tensor | None, left: int, right: int) -> dict[str, Any]:
    """A window wider than any sequence hides nothing, and fits 32 bits."""
    return {
        "key_lengths": None if key_lengths is None else key_lengths.contiguous(),
        "left": min(left, MAX_TOKENS),
        "right": min(right, MAX_TOKENS),
        "WINDOW": left >= 0 or right >= 0,
    }


def plan_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    out: Tensor,
    lse: Tensor,
    *,
    left: int,
    right: int,
    scale: float,
) -> Launch:
    """The launch that writes out and lse."""
    q, k, v = map(_readable, (q, k, v))
    batch, queries, heads, _ = q.shape
    tile, constants = _tile(KNOBS.forward, q)
    arguments = _arguments({"q": q, "k": k, "v": v}) | constants | _mask(key_lengths, left, right)
    arguments |= {"out": out, "lse": lse, "scale": scale, "VECTOR": _vector(q, k, v)}
    arguments |= {"queries": queries, "keys": k.shape[1], "heads": heads, "group": heads // k.shape[2]}
    grid = (triton.cdiv(queries, tile.queries) * batch * heads,)
    return Launch(attention_forward, grid, arguments, tile.warps, num_stages=tile.stages)


def plan_qk_norm_rope(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    key_lengths: Tensor | None,
    out: Tensor,
    *,
    eps: float,
    left: int,
    right: int,
    scale: float,
) -> Launch:
    """The launch that writes out, of q and k normed and rotated on the way."""
    q, k, v = map(_readable, (q, k, v))
    batch, queries, heads, _ = q.shape
    tile, constants = _tile(KNOBS.qk_norm_rope, q)
    arguments = _arguments({"q": q, "k": k, "v": v}) | constants | _mask(key_lengths, left, right)
    arguments |= {"out": out, "scale": scale, "eps": eps}
    arguments |= {"queries": queries, "keys": k.shape[1], "heads": heads, "group": heads // k.shape[2]}
    small = {"cos": cos, "sin": sin, "q_weight": q_weight, "k_weight": k_weight}
    small = {name: None if t is None else t.contiguous() for name, t in small.items()}
    tables = [t[None, :, None] for t in (small["cos"], small["sin"]) if t is not None]
    arguments |= small | {"ROTARY": 0 if cos is None else 2 * cos.shape[1], "VECTOR": _vector(q, k, v, *tables)}
    grid = (triton.cdiv(queries, tile.queries) * batch * heads,)
    return Launch(attention_qk_norm_rope_forward, grid, arguments, tile.warps, num_stages=tile.stages)


def plan_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    delta: Tensor,
    key_lengths: Tensor | None,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    *,
    left: int,
    right: int,
    scale: float,
) -> list[Launch]:
    """The launches, in order, that write delta, dq, dk and dv."""
    grad_out, q, k, v = map(_readable, (grad_out, q, k, v))
    batch, queries, heads, dim = q.shape
    keys, kv_heads = k.shape[1:3]
    vector = _vector(grad_out, q, k, v)
    rows = batch * queries * heads
    grad = _arguments({"grad_out": grad_out})
    arguments = grad | {"out": out, "delta": delta, "queries": queries, "heads": heads, "rows": rows}
    arguments |= {"D": dim, "BLOCK_D": max(16, triton.next_power_of_2(dim)), "ROWS": KNOBS.delta_rows}
    arguments |= {"VECTOR": vector}
    launches = [Launch(attention_delta, (triton.cdiv(rows, KNOBS.delta_rows),), arguments, KNOBS.delta_warps)]

    common = grad | _arguments({"q": q, "k": k, "v": v}) | _mask(key_lengths, left, right)
    common |= {"lse": lse, "delta": delta, "scale": scale, "VECTOR": vector}
    common |= {"queries": queries, "keys": keys, "group": heads // kv_heads}
    tile, constants = _tile(KNOBS.dq, q)
    grid = (triton.cdiv(queries, tile.queries) * batch * heads,)
    arguments = common | constants | {"dq": dq, "heads": heads}
    launches.append(Launch(attention_backward_dq, grid, arguments, tile.warps, num_stages=tile.stages))
    tile, constants = _tile(KNOBS.dkdv_window if common["WINDOW"] else KNOBS.dkdv, q)
    grid = (triton.cdiv(keys, tile.keys) * batch * kv_heads,)
    arguments = common | constants | {"dk": dk, "dv": dv, "kv_heads": kv_heads}
    launches.append(Launch(attention_backward_dkdv, grid, arguments, tile.warps, num_stages=tile.stages))
    return launches


def _attention(
    q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, left: int, right: int, scale: float
) -> tuple[Tensor, Tensor]:
    _check(q, k, v, key_lengths, left, right, scale)
    out = q.new_empty(q.shape)
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    if out.numel():
        with on(q.device):
            plan_forward(q, k, v, key_lengths, out, lse, left=left, right=right, scale=scale).run()
    return out, lse


def _attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    key_lengths: Tensor | None,
    left: int,
    right: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(q, k, v, key_lengths, left, right, scale)
    dq, dk, dv = (t.new_empty(t.shape) for t in (q, k, v))
    if not (q.numel() and k.numel()):
        # Nothing is multiplied with anything.
        return dq.zero_(), dk.zero_(), dv.zero_()
    out, lse, delta = out.contiguous(), lse.contiguous(), torch.empty_like(lse, memory_format=torch.contiguous_format)
    with on(q.device):
        for launch in plan_backward(
            grad_out, q, k, v, out, lse, delta, key_lengths, dq, dk, dv, left=left, right=right, scale=scale
        ):
            launch.run()
    return dq, dk, dv


def _attention_qk_norm_rope(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    key_lengths: Tensor | None,
    left: int,
    right: int,
    scale: float,
) -> Tensor:
    _check(q, k, v, key_lengths, left, right, scale)
    out = q.new_empty(q.shape)
    if out.numel():
        options = {"eps": eps, "left": left, "right": right, "scale": scale}
        with on(q.device):
            plan_qk_norm_rope(q, k, v, cos, sin, q_weight, k_weight, key_lengths, out, **options).run()  # type: ignore[arg-type]
    return out


implement("attention_qk_norm_rope_triton", _attention_qk_norm_rope)
implement("attention_triton", _attention)
implement("attention_backward_triton", _attention_backward)
