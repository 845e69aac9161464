"""Gaussian noise that a seed determines: the same on every device, for every batch that holds the sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seeded_noise(
    shape: Sequence[int],
    *,
    seed: int | Sequence[int],
    offset: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise ``[B, ...]``.

    Args:
        shape: B first.
        seed: one int for the batch, each sample drawing its own noise from it, or B ints, one for each sample.  An int
            s with B = 1 gives what ``[s]`` gives.
        offset: which draw of a run: 0 is the starting noise, noise added after step i is i + 1.

    Drawn on the CPU and moved, so that every device starts from the same noise.
    """
    shape = tuple(shape)
    if isinstance(seed, int):
        keys = [(seed, sample) for sample in range(shape[0])]
    else:
        keys = [(int(s), 0) for s in seed]
        if len(keys) != shape[0]:
            raise ValueError(f"seed must be an int or one int per sample, {shape[0]}, got {len(keys)}")
    noise = torch.empty(shape, dtype=torch.float32)
    for row, (key, sample) in zip(noise, keys, strict=True):
        digest = hashlib.blake2b(f"{key} {offset} {sample}".encode(), digest_size=8).digest()
        row.normal_(generator=torch.Generator().manual_seed(int.from_bytes(digest, "little")))
    return noise.to(device=device, dtype=dtype)
