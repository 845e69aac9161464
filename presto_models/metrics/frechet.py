"""Fréchet distance between Gaussians: FID, and on audio embeddings FAD (Kilgour et al. 2019).

    d = |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^1/2)

with tr (C1 C2)^1/2 = sum of the square roots of the eigenvalues of C1^1/2 C2 C1^1/2, which is symmetric: real in
float64 where a general matrix root wanders into the complex.  An estimate from n embeddings is too large by about a
constant over n; so only distances from equally many embeddings may be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from presto_models.metrics.embedded import EmbeddedClips


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    """Between N(mean1, cov1) and N(mean2, cov2): means ``[..., D]``, covariances ``[..., D, D]``, result ``[...]``,
    float64.

    Raises:
        ValueError: shapes that do not fit together, or a covariance that is not symmetric or has clearly negative
        eigenvalues.
    """
    dimension = mean1.shape[-1]
    for name, mean, cov in (("1", mean1, cov1), ("2", mean2, cov2)):
        if mean.shape[-1] != dimension or cov.shape[-2:] != (dimension, dimension):
            raise ValueError(
                f"mean{name} and cov{name} must be [..., {dimension}] and [..., {dimension}, {dimension}], "
                f"got {tuple(mean.shape)} and {tuple(cov.shape)}"
            )
    mean1, cov1, mean2, cov2 = (tensor.double() for tensor in (mean1, cov1, mean2, cov2))
    root = _symmetric_root(cov1, "cov1")
    cross = _eigenvalues(root @ _checked(cov2, "cov2") @ root, "cov2").sqrt().sum(-1)
    traces = cov1.diagonal(dim1=-2, dim2=-1).sum(-1) + cov2.diagonal(dim1=-2, dim2=-1).sum(-1)
    return ((mean1 - mean2).square().sum(-1) + traces - 2 * cross).clamp_min(0)  # rounding can leave -1e-13


def gaussian(embeddings: Tensor, weights: Tensor | None = None, *, shrinkage: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean ``[D]`` and unbiased covariance ``[D, D]`` of embeddings ``[n, D]``, each counted ``weights [n]`` times,
    float64.

    Args:
        shrinkage: s in [0, 1]: the covariance becomes (1 - s) C + s tr(C)/D I, which has full rank however few the
        embeddings are.
    """
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must lie in [0, 1], got {shrinkage}")
    x = embeddings.double()
    counts = x.new_ones(len(x)) if weights is None else weights.double()
    total = counts.sum()
    mean = counts @ x / total
    centred = x - mean
    cov = (centred * counts[:, None]).T @ centred / (total - 1)
    even = torch.eye(len(cov), dtype=cov.dtype) * cov.trace() / len(cov)
    return mean, (1 - shrinkage) * cov + shrinkage * even


def frechet_audio_distance(x: Tensor | EmbeddedClips, y: Tensor | EmbeddedClips, *, shrinkage: float = 0.0) -> float:
    """FAD between two sets of embeddings, ``[clips, D]``, ``[clips, patches, D]`` or :class:`EmbeddedClips`.

    Raises:
        ValueError: fewer embeddings than D + 1 on a side and no ``shrinkage``: a covariance of that few is singular
        and the distance says more about their number than about the music.
    """
    x, y = EmbeddedClips.of(x), EmbeddedClips.of(y)
    check_enough(x, "x", shrinkage)
    check_enough(y, "y", shrinkage)
    sides = [gaussian(clips.patches(), shrinkage=shrinkage) for clips in (x, y)]
    return float(frechet_distance(*sides[0], *sides[1]))


def check_enough(clips: EmbeddedClips, name: str, shrinkage: float) -> None:
    """ValueError unless there are more embeddings than dimensions, or some shrinkage."""
    count, dimension = len(clips.patches()), clips.embeddings.shape[-1]
    if count <= dimension and not shrinkage:
        raise ValueError(
            f"{name} has {count} embeddings of {dimension} dimensions; FAD needs more than {dimension}: "
            f"take more or longer clips, or a shrinkage above 0"
        )


def _checked(cov: Tensor, name: str) -> Tensor:
    scale = cov.abs().amax().clamp_min(torch.finfo(torch.float64).tiny)
    if not torch.isfinite(cov).all() or (cov - cov.mT).abs().amax() > 1e-6 * scale:
        raise ValueError(f"{name} must be a finite symmetric matrix")
    return (cov + cov.mT) / 2


def _eigenvalues(matrix: Tensor, name: str) -> Tensor:
    values = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)
    if values.min() < -1e-6 * values.abs().max():
        raise ValueError(f"{name} must have no negative eigenvalues, smallest is {values.min():.3g}")
    return values.clamp_min(0)


def _symmetric_root(cov: Tensor, name: str) -> Tensor:
    values, vectors = torch.linalg.eigh(_checked(cov, name))
    if values.min() < -1e-6 * values.abs().max():
        raise ValueError(f"{name} must have no negative eigenvalues, smallest is {values.min():.3g}")
    return (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
