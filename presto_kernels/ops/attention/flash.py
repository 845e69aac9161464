"""flash-attn 2, 3 and 4, each for the calls that it gets right.

    flash-attn 2   ``flash_attn.flash_attn_func``; key lengths through ``flash_attn_with_kvcache``, inference only
    flash-attn 3   ``flash_attn_interface.flash_attn_func`` (Hopper)
    flash-attn 4   ``flash_attn.cute.flash_attn_func`` (Hopper, Blackwell)

All three take ``[B, N, H, Dh]`` as we do, float16 and bfloat16, grouped heads, and have a deterministic backward that
must be asked for.  None of them gets a window: a masked weight of 0 is multiplied with the hidden value, so that a NaN
there reaches the rows of its block (and -1 is unbounded in 2 and 3, None in 4).  Key lengths leak the same way in 3 and
4, which load whole blocks; 2 clears what it loads beyond a length.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from presto_kernels.ops.checks import wants_gradient


@dataclass(frozen=True)
class Release:
    """One of them: where it is, and what it can do."""

    name: str
    module: str
    majors: tuple[int, ...]  # of compute capability
    max_dim: int
    lengths: bool = False
    unbounded: int | None = -1  # how it writes the side of a window that is open


# The newest that the device has kernels for comes first.
RELEASES = (
    Release("flash-attn 3", "flash_attn_interface", (9,), 256),
    Release("flash-attn 4", "flash_attn.cute", (9, 10), 128, unbounded=None),
    Release("flash-attn 2", "flash_attn", (8, 9, 10, 12), 256, lengths=True),
)


@functools.cache
def _load(module: str) -> ModuleType | None:
    """The module with its functions, or None where it is not installed or does not load here."""
    try:
        loaded = importlib.import_module(module)
    except (ImportError, OSError, RuntimeError):  # no such package, or built for another torch or CUDA
        return None
    return loaded if hasattr(loaded, "flash_attn_func") else None


@functools.cache
def _takes(module: str, argument: str) -> bool:
    loaded = _load(module)
    return loaded is not None and argument in inspect.signature(loaded.flash_attn_func).parameters


def _capability(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]


def _refusal(release: Release, dim: int, major: int, lengths: bool, training: bool) -> str | None:
    """Why this release cannot take a call, or None."""
    if _load(release.module) is None:
        return "not installed"
    if major not in release.majors:
        return f"no kernels for compute capability {major}.x"
    if dim > release.max_dim:
        return f"heads of at most {release.max_dim}"
    if training and not _takes(release.module, "deterministic"):
        return "this version has no deterministic backward"
    if lengths and not release.lengths:
        return "what lies beyond a key length would leak where it is NaN"
    if lengths and training:
        return "key lengths have no backward"
    return None


def limits(
    q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, left: int, right: int, scale: float
) -> str | None:
    """Why none of them can take a call, or None."""
    if torch.compiler.is_compiling():
        return "its operators are not traced by torch.compile here"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {q.dtype}"
    if left >= 0 or right >= 0:
        return "what a window hides would leak where it is NaN"
    if q.shape[3] % 8:
        return f"heads must be a multiple of 8, not {q.shape[3]}"
    if not (q.numel() and k.numel()):
        return "there is nothing to run"
    call = (q.shape[3], _capability(q.device), key_lengths is not None, wants_gradient((q, k, v)))
    reasons = [(release.name, _refusal(release, *call)) for release in RELEASES]
    if any(reason is None for _, reason in reasons):
        return None
    return ", ".join(f"{name}: {reason}" for name, reason in reasons)


def attention(
    q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, left: int, right: int, scale: float
) -> Tensor:
    """``[B, Nq, H, Dh]`` of a call that :func:`limits` lets through; autograd differentiates it."""
    training = wants_gradient((q, k, v))
    call = (q.shape[3], _capability(q.device), key_lengths is not None, training)
    release = next(release for release in RELEASES if _refusal(release, *call) is None)
    module = _load(release.module)
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    options: dict[str, Any] = {"softmax_scale": scale, "causal": False, "window_size": (release.unbounded,) * 2}
    if key_lengths is not None:
        used = key_lengths.clamp(0, k.shape[1]).to(torch.int32)
        out = module.flash_attn_with_kvcache(q, k, v, cache_seqlens=used, **options)  # type: ignore[union-attr]
    else:
        if training:
            options["deterministic"] = True
        out = module.flash_attn_func(q, k, v, **options)  # type: ignore[union-attr]
    # Some versions answer (out, lse).
    return (out[0] if isinstance(out, tuple) else out).contiguous()
