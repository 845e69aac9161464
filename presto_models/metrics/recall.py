"""How much of the real music the other set reaches, and how much of the other set is real: nearest-neighbour measures.

A real point's ball reaches to its k-th nearest other real point.

    precision  share of fake points inside any real ball              (Kynkäänniemi et al. 2019)
    recall     share of real points inside any fake ball
    density    how many real balls a fake point lies in, over k        (Naeem et al. 2020)
    coverage   share of real balls with a fake point inside
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 5


class Coverage(NamedTuple):
    """precision, recall and coverage in [0, 1]; density about 1 where both sets have one distribution, maybe more."""

    precision: float
    recall: float
    density: float
    coverage: float


def density_and_coverage(real: Tensor, fake: Tensor, *, neighbours: int = NEIGHBOURS) -> Coverage:
    """All four measures of ``fake`` ``[m, D]`` against ``real`` ``[n, D]``, one embedding a clip.

    Under one distribution and n = m, coverage is about 1 - 2^-neighbours: 0.97 for 5.

    Raises:
        ValueError: a set has no more than ``neighbours`` points, or the dimensions differ.
    """
    if real.dim() != 2 or fake.dim() != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"real and fake must be [n, D] and [m, D], got {tuple(real.shape)} and {tuple(fake.shape)}")
    if neighbours < 1 or min(len(real), len(fake)) <= neighbours:
        raise ValueError(
            f"neighbours must lie in 1..{min(len(real), len(fake)) - 1} for so few clips, got {neighbours}"
        )
    real, fake = real.double(), fake.double()
    between = torch.cdist(real, fake)
    real_balls, fake_balls = _radii(real, neighbours), _radii(fake, neighbours)
    inside = between <= real_balls[:, None]
    return Coverage(
        precision=float(inside.any(0).double().mean()),
        recall=float((between <= fake_balls[None, :]).any(1).double().mean()),
        density=float(inside.double().sum(0).mean() / neighbours),
        coverage=float((between.amin(1) <= real_balls).double().mean()),
    )


def _radii(points: Tensor, neighbours: int) -> Tensor:
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")  # exactly 0 to itself
    return distances.kthvalue(neighbours + 1, dim=1).values
