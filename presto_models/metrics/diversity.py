"""How different the pieces are that other seeds make of one prompt.

With e_ps the mean embedding of the clip of prompt p and seed s, and r_i those of real clips,

    diversity = mean_p d_p / D,   d_p = mean_{s<t} |e_ps - e_pt|,   D = mean |r_i - r_j| over clips of different pieces

0: every seed makes the same clip.  1: seeds of one prompt differ as much as any two real pieces do, which is more than
is to be hoped for where the prompt says something about the music.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from presto_models.metrics.embedded import EmbeddedClips, Interval


def diversity(made: Tensor, real: EmbeddedClips, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Diversity across seeds, with a 95 % interval that resamples prompts (D stays as it is).

    Args:
        made: ``[prompts, seeds, D]``, one mean embedding a clip.
        real: clips of at least two pieces, on the same ears.

    Raises:
        ValueError: fewer than two seeds, another D, or no two real clips that differ.
    """
    if made.dim() != 3 or made.shape[1] < 2 or made.shape[2] != real.embeddings.shape[2]:
        raise ValueError(
            f"made must be [prompts, seeds, {real.embeddings.shape[2]}] of at least 2 seeds, got {tuple(made.shape)}"
        )
    seeds = made.shape[1]
    pairs = torch.triu_indices(seeds, seeds, 1)
    of_prompts = torch.stack([_distances(clips)[pairs[0], pairs[1]].mean() for clips in made.double()])
    names = np.array(real.pieces)
    others = torch.from_numpy(names[:, None] != names[None])
    between = _distances(real.means)[others].mean()
    if not between > 0:  # nan where there is no such pair
        raise ValueError("real must have clips of at least two pieces that differ")
    shares = of_prompts / between
    drawn = torch.from_numpy(np.random.default_rng(seed).integers(0, len(shares), (resamples, len(shares))))
    return Interval.around(float(shares.mean()), shares[drawn].mean(1))


def _distances(points: Tensor) -> Tensor:
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")  # exactly 0 to itself
