"""PyTorch's own attention, ``F.scaled_dot_product_attention``, for the calls that it gets right.

    out = softmax(scale q k^T) v         over all keys

It takes ``[B, H, N, Dh]``, which the op's tensors are transposed views of, and writes its result in our layout.  What
it is not used for is in :func:`limits`: a mask of its own multiplies hidden values by 0, so that a NaN there reaches
every row, and its fast backward on CUDA adds in no fixed order unless PyTorch is told to be deterministic.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_kernels.ops.checks import wants_gradient

MAX_PROGRAMS = 65535
"""Samples times heads that PyTorch's memory-efficient kernel puts on one axis of its grid."""


def limits(
    q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, left: int, right: int, scale: float
) -> str | None:
    """Why a call cannot be taken, or None."""
    if left >= 0 or right >= 0:
        return "a window would cost it all pairs, and what the window hides would leak where it is NaN"
    if key_lengths is not None:
        return "what lies beyond a key length would leak where it is NaN"
    if k.shape[1] == 0:
        return "without keys there is nothing to run"
    if q.device.type != "cuda":
        return None
    if q.shape[3] % 8 or q.shape[3] > 256:
        return "its fast kernels take heads of 8, 16, ..., 256; others would build the whole matrix of scores"
    if q.shape[0] * q.shape[2] > MAX_PROGRAMS:
        return f"more than {MAX_PROGRAMS} samples times heads"
    if wants_gradient((q, k, v)):
        if not torch.are_deterministic_algorithms_enabled() or torch.is_deterministic_algorithms_warn_only_enabled():
            return "its gradients differ from run to run without torch.use_deterministic_algorithms(True)"
        if q.dtype == torch.float32:
            return "it has no deterministic backward in float32 but the one that builds the whole matrix of scores"
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``[B, Nq, H, Dh]`` of a call that :func:`limits` lets through; autograd differentiates it."""
    grouped = False
    if k.shape[2] != q.shape[2]:  # a branch: torch.compile's shapes compare to a symbol, which PyTorch does not take
        grouped = True
    with _as_it_is(q):
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale, enable_gqa=grouped
        )
    return out.transpose(1, 2).contiguous()


def _as_it_is(t: Tensor) -> contextlib.AbstractContextManager[object]:
    """Autocast would run it in another dtype than that of its inputs."""
    if t.device.type in ("cpu", "cuda"):
        return torch.autocast(t.device.type, enabled=False)
    return contextlib.nullcontext()
