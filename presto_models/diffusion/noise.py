"""Gaussian noise that a seed determines: the same on every device, wherever in a batch a sample stands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from presto_kernels import renoise

Seed = int | Sequence[int] | Tensor


def initial_noise(
    shape: Sequence[int],
    *,
    seed: Seed,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The standard normal noise ``[B, ...]`` that a run starts from: offset 0 of :func:`presto_kernels.renoise`.

    Args:
        shape: B first.
        seed: one int for the batch, each sample drawing its own noise from it; or B ints, one for each sample; or the
            same as an int64 tensor on ``device``.  An int s with B = 1 gives what ``[s]`` gives.
    """
    zeros = torch.zeros(tuple(shape), device=device, dtype=dtype)
    return renoise(zeros, 1.0, seed=seed_for(zeros, seed), offset=0)


def seed_for(x: Tensor, seed: Seed) -> int | Tensor:
    """``seed`` as :func:`presto_kernels.renoise` takes it beside x: several ints become a tensor on x's device, so a
    sampler calls this once and not in its loop."""
    if isinstance(seed, (int, Tensor)):
        return seed
    if len(seed) != x.shape[0]:
        raise ValueError(f"seed must be an int or one int per sample, {x.shape[0]}, got {len(seed)}")
    for s in seed:
        if not -(2**63) <= s < 2**64:
            raise ValueError(f"seed must lie in [-2^63, 2^64), got {s}")
    return torch.tensor([s - 2**64 if s >= 2**63 else s for s in seed], dtype=torch.int64, device=x.device)
