"""Maximum mean discrepancy (Gretton et al. 2012), unbiased, from clips of several patches each.

    MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y)

over independent pairs.  Patches of one piece are not independent, so a pair counts only where its two clips are of
different pieces, in all three terms (in the last one too, which matters when y is made from x, as reconstructions
are).  Zero in the mean when the two sets have one distribution, whatever their sizes; it can be negative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from presto_models.metrics.embedded import EmbeddedClips

Kernel = Callable[[Tensor, Tensor], Tensor]
_ROWS_AT_ONCE = 1024


def median_bandwidth(embeddings: Tensor | EmbeddedClips, *, most: int = 2000) -> float:
    """The median distance between embeddings of different clips, of at most ``most`` embeddings evenly taken."""
    clips = EmbeddedClips.of(embeddings)
    if len(clips.embeddings) < 2:
        raise ValueError("a median distance needs at least two clips")
    patches = clips.patches()
    owner = torch.arange(len(clips.embeddings)).repeat_interleave(clips.embeddings.shape[1])
    step = max(1, -(-len(patches) // most))
    patches, owner = patches[::step], owner[::step]
    distances = torch.cdist(patches, patches)[owner[:, None] < owner[None, :]]
    return max(float(distances.median()), torch.finfo(torch.float64).tiny)


@dataclass(frozen=True)
class GaussianKernel:
    """exp(-|x - y|² / (2 bandwidth²))."""

    bandwidth: float

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth must be above 0, got {self.bandwidth}")

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(x, y).square() / (2 * self.bandwidth**2))


@dataclass(frozen=True)
class PolynomialKernel:
    """(x·y/D + 1)³, the kernel inception distance's (Bińkowski et al. 2018)."""

    degree: int = 3

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** self.degree


class MMD:
    """MMD² between two sets, ready for many resamples: the kernel is summed up clip by clip once.

    Args:
        x, y: ``[clips, D]``, ``[clips, patches, D]`` or :class:`EmbeddedClips`, of the same D.
        kernel: by default Gaussian with y's median distance as its bandwidth.  Values compare only under one kernel.

    Raises:
        ValueError: the embeddings differ in size, or a set has clips of one piece only.
    """

    def __init__(self, x: Tensor | EmbeddedClips, y: Tensor | EmbeddedClips, kernel: Kernel | None = None) -> None:
        x, y = EmbeddedClips.of(x), EmbeddedClips.of(y)
        if x.embeddings.shape[-1] != y.embeddings.shape[-1]:
            raise ValueError(
                f"x has {x.embeddings.shape[-1]} dimensions and y {y.embeddings.shape[-1]}; they must agree"
            )
        for name, clips in (("x", x), ("y", y)):
            if len(set(clips.pieces)) < 2:
                raise ValueError(f"{name} must have clips of at least two pieces, got {len(clips.pieces)} clips of one")
        self.x, self.y = x, y
        kernel = kernel or GaussianKernel(median_bandwidth(y))
        self._terms = [(*_clip_kernel(a, b, kernel), a is x, b is x) for a, b in ((x, x), (y, y), (x, y))]

    def value(self) -> float:
        ones = (torch.ones(1, len(clips.pieces), dtype=torch.float64) for clips in (self.x, self.y))
        return float(self.resamples(*ones))

    def resamples(self, x_counts: Tensor, y_counts: Tensor) -> Tensor:
        """MMD² in each bootstrap resample: counts ``[draws, clips]`` from :meth:`EmbeddedClips.resamples`, result
        ``[draws]``.

        Resamples in which no two pieces of a set differ (of two pieces, every second one) give nan.
        """
        terms = []
        for sums, pairs, left_is_x, right_is_x in self._terms:
            left, right = (x_counts if left_is_x else y_counts), (x_counts if right_is_x else y_counts)
            terms.append(((left @ sums) * right).sum(1) / ((left @ pairs) * right).sum(1))
        return terms[0] + terms[1] - 2 * terms[2]


def mmd2(x: Tensor | EmbeddedClips, y: Tensor | EmbeddedClips, kernel: Kernel | None = None) -> float:
    """Unbiased MMD² between two sets; see :class:`MMD`."""
    return MMD(x, y, kernel).value()


def _clip_kernel(a: EmbeddedClips, b: EmbeddedClips, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Mean kernel over patches of each pair of clips ``[clips of a, of b]``, and 1 where the pair counts, else 0."""
    right = b.patches()
    of_a = max(1, _ROWS_AT_ONCE // a.embeddings.shape[1])
    rows = []
    for chunk in a.embeddings.split(of_a):
        values = kernel(chunk.flatten(0, 1), right)
        rows.append(values.unflatten(0, chunk.shape[:2]).unflatten(2, b.embeddings.shape[:2]).mean((1, 3)))
    different = np.array(a.pieces)[:, None] != np.array(b.pieces)[None]
    pairs = torch.from_numpy(different).double()
    return torch.cat(rows) * pairs, pairs
