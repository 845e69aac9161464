"""Random numbers that a run's seed, a purpose and a position determine: nothing reads or changes global state, so a
run that was killed and went on draws what it would have drawn, on any number of processes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(seed: int, purpose: str, *position: int) -> int:
    """64 bits from numpy's SeedSequence over (seed, crc32(purpose), how long the position is, position).

    The length stands there because SeedSequence does not tell (1,) from (1, 0).
    """
    words = (seed, zlib.crc32(purpose.encode()), len(position), *position)
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A CPU generator for one use: a purpose ("crop", "sigma", ...) at a position (step, sample, ...)."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *position))


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Modules made inside get the weights of this seed: they draw from torch's global generator, which is put back
    afterwards."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(derived_seed(seed, "weights"))
        yield
