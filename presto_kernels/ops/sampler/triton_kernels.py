"""The sampler family in Triton: its four operators, launch parameters and limits.

The kernels are in :mod:`presto_kernels.ops.sampler.triton_jit`, with what they compute, round, move and cannot do.
Importing this module needs triton and registers the operators, for CUDA tensors and, where Triton runs in its
interpreter (TRITON_INTERPRET=1), for CPU tensors too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import triton
from torch import Tensor

from presto_kernels.ops.sampler import operators, triton_jit
from presto_kernels.ops.triton_common import Launch, implement, on


@dataclass(frozen=True)
class Knobs:
    """Launch parameters, chosen by counting what is in flight, not by a stopwatch."""

    # Elements of a program.  1024 cut 1379 x 64 latents into 87 programs, most of a GPU's multiprocessors.
    block: int = 1024
    # Moving: 8 elements a thread, two loads of 16 bytes of fp32 (one of bf16) from each tensor.
    move_warps: int = 4
    # Drawing: 16 bytes a thread, one counter of fp32 or two of a half: much arithmetic for each, so many threads.
    draw_bytes: int = 16
    # Second kernel of a sum: terms it loads at a time.
    sum_terms: int = 1024
    sum_warps: int = 4


KNOBS = Knobs()
MAX_PROGRAMS = 2**31 - 1


def limits(x: Tensor) -> str | None:
    """Why a tensor of this shape cannot be taken, or None."""
    if x.shape[0] * _programs(x) > MAX_PROGRAMS:
        return f"{list(x.shape)} takes more than {MAX_PROGRAMS} programs"
    return None


def _size(x: Tensor) -> int:
    """Elements of a sample."""
    return math.prod(x.shape[1:])


def _programs(x: Tensor) -> int:
    """Programs of a sample."""
    return max(1, triton.cdiv(_size(x), KNOBS.block))


def _dense(t: Tensor) -> bool:
    """Whether a sample's elements are neighbours in row-major order."""
    expected = 1
    for size, stride in zip(reversed(t.shape[1:]), reversed(t.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _row_stride(t: Tensor) -> int | None:
    """The stride at which a sample is rows of the last dimension; None where it is not."""
    axes = [(size, stride) for size, stride in zip(t.shape[1:-1], t.stride()[1:-1], strict=True) if size != 1]
    if t.dim() == 1 or (t.stride(-1) != 1 and t.shape[-1] != 1):
        return None
    for (_, outer), (size, inner) in pairwise(axes):
        if outer != size * inner:
            return None
    return axes[-1][1] if axes else 0


def _walk(read: dict[str, Tensor | None], written: list[Tensor | None]) -> dict[str, Any]:
    """The kernel's arguments for tensors of one shape: themselves, copied where no walk serves, and how to walk."""
    tensors = {
        k: t if t is None or _dense(t) or _row_stride(t) is not None else t.contiguous() for k, t in read.items()
    }
    given = [t for t in tensors.values() if t is not None]
    x = given[0]
    flat = all(_dense(t) for t in given)
    arguments: dict[str, Any] = dict(tensors)
    for name, t in tensors.items():
        arguments[f"{name}_batch"] = 0 if t is None else t.stride(0)
        arguments[f"{name}_row"] = 0 if t is None or flat else _row_stride(t)
    # Whole vectors of 16 elements, which are at least 16 bytes, from the start of every sample to its end.
    vector = flat and all(
        t.data_ptr() % 16 == 0 and _size(t) % 16 == 0 and (t.shape[0] == 1 or t.stride(0) % 16 == 0)
        for t in (*given, *written)
        if t is not None
    )
    arguments |= {"programs": _programs(x), "size": _size(x), "dim": max(1, _size(x) if flat else x.shape[-1])}
    return arguments | {"BLOCK": KNOBS.block, "FLAT": flat, "VECTOR": vector}


def _draw(seeds: Tensor | None, seed: int, offsets: Tensor | None, offset: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {"seeds": seeds, "seed": seed, "offsets": offsets, "offset": offset}
    arguments |= {"seeds_stride": 0 if seeds is None else seeds.stride(0)}
    return arguments | {"offsets_stride": 0 if offsets is None else offsets.stride(0)}


def _draw_warps(x: Tensor) -> int:
    return KNOBS.block * x.element_size() // (32 * KNOBS.draw_bytes)


def _launch(kernel: Any, x: Tensor, arguments: dict[str, Any], warps: int) -> Launch:
    return Launch(kernel, (x.shape[0] * _programs(x),), arguments, warps)


def plan_edm_denoise(
    model_output: Tensor, x: Tensor, sigma: Tensor, out: Tensor, *, sigma_data: float, sigma_min: float
) -> list[Launch]:
    """The launches that write out."""
    arguments = _walk({"x": x, "model_output": model_output}, [out])
    arguments |= {"sigma": sigma, "sigma_stride": sigma.stride(0), "out": out}
    arguments |= {"sigma_data": sigma_data, "sigma_min": sigma_min}
    return [_launch(triton_jit.edm_denoise, x, arguments, KNOBS.move_warps)]


def plan_edm_denoise_backward(
    grad: Tensor,
    model_output: Tensor | None,
    x: Tensor | None,
    sigma: Tensor,
    dmodel_output: Tensor | None,
    dx: Tensor | None,
    dsigma: Tensor | None,
    *,
    sigma_data: float,
    sigma_min: float,
) -> list[Launch]:
    """The launches, in order, that write the gradients that are given."""
    read = {"grad": grad, "model_output": model_output, "x": x}
    if dsigma is None:
        read |= {"model_output": None, "x": None}
    arguments = _walk(read, [dmodel_output, dx])
    sums = None if dsigma is None else grad.new_empty(grad.shape[0] * _programs(grad), dtype=torch.float32)
    arguments |= {"sigma": sigma, "sigma_stride": sigma.stride(0), "sigma_data": sigma_data, "sigma_min": sigma_min}
    arguments |= {"dmodel_output": dmodel_output, "dx": dx, "sums": sums}
    return [
        _launch(triton_jit.edm_denoise_backward, grad, arguments, KNOBS.move_warps),
        *_plan_sums(sums, dsigma, grad),
    ]


def plan_renoise(
    x0: Tensor,
    sigmas: Tensor | None,
    sigma: float,
    seeds: Tensor | None,
    seed: int,
    offsets: Tensor | None,
    offset: int,
    signal: float,
    out: Tensor,
) -> list[Launch]:
    """The launches that write out."""
    arguments = _walk({"x0": x0}, [out]) | _draw(seeds, seed, offsets, offset)
    arguments |= {"sigmas": sigmas, "sigmas_stride": 0 if sigmas is None else sigmas.stride(0), "sigma": sigma}
    arguments |= {"signal": signal, "out": out}
    return [_launch(triton_jit.renoise, x0, arguments, _draw_warps(x0))]


def plan_renoise_backward(
    grad: Tensor, seeds: Tensor | None, seed: int, offsets: Tensor | None, offset: int, dsigma: Tensor
) -> list[Launch]:
    """The launches, in order, that write dsigma."""
    sums = grad.new_empty(grad.shape[0] * _programs(grad), dtype=torch.float32)
    arguments = _walk({"grad": grad}, []) | _draw(seeds, seed, offsets, offset) | {"sums": sums}
    return [_launch(triton_jit.renoise_backward, grad, arguments, _draw_warps(grad)), *_plan_sums(sums, dsigma, grad)]


def _plan_sums(sums: Tensor | None, out: Tensor | None, x: Tensor) -> list[Launch]:
    if sums is None or out is None:
        return []
    arguments = {"sums": sums, "out": out, "programs": _programs(x), "TERMS": KNOBS.sum_terms}
    return [Launch(triton_jit.sample_sums, (x.shape[0],), arguments, KNOBS.sum_warps)]


def _run(x: Tensor, launches: list[Launch]) -> None:
    reason = limits(x)
    if reason:
        raise ValueError(f"x: {reason}")
    with on(x.device):
        for launch in launches:
            launch.run()


def _edm_denoise(model_output: Tensor, x: Tensor, sigma: Tensor, sigma_data: float, sigma_min: float) -> Tensor:
    out = x.new_empty(x.shape)
    if x.numel():
        _run(x, plan_edm_denoise(model_output, x, sigma, out, sigma_data=sigma_data, sigma_min=sigma_min))
    return out


def _edm_denoise_backward(
    grad: Tensor,
    model_output: Tensor | None,
    x: Tensor | None,
    sigma: Tensor,
    sigma_data: float,
    sigma_min: float,
    output_dtype: int,
    needs: int,
) -> tuple[Tensor, ...]:
    dtypes = {code: dtype for dtype, code in operators.DTYPE_CODES.items()}
    owners = ((grad.shape, dtypes[output_dtype]), (grad.shape, grad.dtype), (sigma.shape, sigma.dtype))
    grads = [grad.new_empty(shape if needs >> bit & 1 else 0, dtype=d) for bit, (shape, d) in enumerate(owners)]
    doutput, dx, dsigma = (gradient if needs >> bit & 1 else None for bit, gradient in enumerate(grads))
    if grad.numel() and needs:
        numbers = {"sigma_data": sigma_data, "sigma_min": sigma_min}
        _run(grad, plan_edm_denoise_backward(grad, model_output, x, sigma, doutput, dx, dsigma, **numbers))
    elif dsigma is not None:
        dsigma.zero_()
    return tuple(grads)


def _renoise(
    x0: Tensor,
    sigmas: Tensor | None,
    sigma: float,
    seeds: Tensor | None,
    seed: int,
    offsets: Tensor | None,
    offset: int,
    signal: float,
) -> Tensor:
    out = x0.new_empty(x0.shape)
    if x0.numel():
        _run(x0, plan_renoise(x0, sigmas, sigma, seeds, seed, offsets, offset, signal, out))
    return out


def _renoise_backward(
    grad: Tensor, sigma: Tensor, seeds: Tensor | None, seed: int, offsets: Tensor | None, offset: int
) -> Tensor:
    dsigma = sigma.new_empty(sigma.shape)
    if grad.numel():
        _run(grad, plan_renoise_backward(grad, seeds, seed, offsets, offset, dsigma))
    else:
        dsigma.zero_()
    return dsigma


implement("edm_denoise_triton", _edm_denoise)
implement("edm_denoise_backward_triton", _edm_denoise_backward)
implement("renoise_triton", _renoise)
implement("renoise_backward_triton", _renoise_backward)
