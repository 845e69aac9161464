"""Distances of several sets of clips from one reference set, and where one of them lies between two others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from presto_models.metrics.embedded import EmbeddedClips, Interval
from presto_models.metrics.frechet import check_enough, frechet_audio_distance, frechet_distance, gaussian
from presto_models.metrics.mmd import MMD, GaussianKernel, Kernel, PolynomialKernel, median_bandwidth


@dataclass(frozen=True)
class Distances:
    """One measure of each set against the reference.

    Attributes:
        to_reference: set's name to its distance.
        ratio: (generated - floor) / (ceiling - floor): 0 as near as real music, 1 as far as noise; None where a set is
        missing.
    """

    to_reference: dict[str, Interval]
    ratio: Interval | None

    def as_dict(self) -> dict[str, Any]:
        distances = {name: interval.as_dict() for name, interval in self.to_reference.items()}
        return {"to_reference": distances, "ratio": self.ratio.as_dict() if self.ratio else None}


def compare(
    reference: EmbeddedClips,
    sets: Mapping[str, EmbeddedClips],
    *,
    floor: str,
    ceiling: str,
    of: str,
    resamples: int = 1000,
    seed: int = 0,
    shrinkage: float = 0.0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, Distances]:
    """FAD, MMD² and KID of each set to ``reference``.

    All sets must hold equally many clips of equally many patches, since a FAD from few embeddings is too large by
    about a constant over their number.  In each resample the reference is drawn once for all sets, and a set of the
    reference's own pieces (reconstructions) with it.

    Args:
        floor, ceiling, of: the names of the sets of ``ratio``.
        shrinkage: of FAD's covariances, as in :func:`gaussian`; needed where there are fewer patches than dimensions.
        progress: wraps the resamples' numbers, to show how far they are.

    Raises:
        ValueError: sets of different sizes, or too few embeddings for FAD.
    """
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}")
    for name, clips in {"reference": reference, **sets}.items():
        check_enough(clips, name, shrinkage)
        if clips.embeddings.shape != reference.embeddings.shape:
            raise ValueError(
                f"all sets must hold equally many clips, patches and dimensions: {name} has "
                f"{tuple(clips.embeddings.shape)}, the reference {tuple(reference.embeddings.shape)}"
            )
    counts_of_reference = reference.resamples(resamples, seed)
    counts = {}
    for number, (name, clips) in enumerate(sets.items()):
        own_seed = seed if clips.pieces == reference.pieces else seed + 1 + number
        counts[name] = clips.resamples(resamples, own_seed)

    fad = {name: frechet_audio_distance(clips, reference, shrinkage=shrinkage) for name, clips in sets.items()}
    fad_draws = _frechet_draws(reference, counts_of_reference, sets, counts, shrinkage, progress)
    measured = {"fad": (fad, fad_draws)}
    kernels: dict[str, Kernel] = {"mmd": GaussianKernel(median_bandwidth(reference)), "kid": PolynomialKernel()}
    for measure, kernel in kernels.items():
        ready = {name: MMD(clips, reference, kernel) for name, clips in sets.items()}
        values = {name: mmd.value() for name, mmd in ready.items()}
        draws = {name: mmd.resamples(counts[name], counts_of_reference) for name, mmd in ready.items()}
        measured[measure] = (values, draws)

    def share(at: Mapping[str, Any]) -> Any:
        return (at[of] - at[floor]) / (at[ceiling] - at[floor])

    complete = {floor, ceiling, of} <= set(sets)
    return {
        measure: Distances(
            {name: Interval.around(values[name], draws[name]) for name in sets},
            Interval.around(share(values), share(draws)) if complete else None,
        )
        for measure, (values, draws) in measured.items()
    }


def _frechet_draws(
    reference: EmbeddedClips,
    counts_of_reference: Tensor,
    sets: Mapping[str, EmbeddedClips],
    counts: Mapping[str, Tensor],
    shrinkage: float,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> dict[str, Tensor]:
    """FAD of each set in each resample: ``[draws]`` by name."""
    draws: dict[str, list[Tensor]] = {name: [] for name in sets}
    for number in progress(range(len(counts_of_reference))):
        drawn = _gaussian(reference, counts_of_reference[number], shrinkage)
        for name, clips in sets.items():
            draws[name].append(frechet_distance(*_gaussian(clips, counts[name][number], shrinkage), *drawn))
    return {name: torch.stack(values) for name, values in draws.items()}


def _gaussian(clips: EmbeddedClips, counts: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    drawn = counts > 0
    patches = clips.embeddings[drawn]
    return gaussian(patches.flatten(0, 1), counts[drawn].repeat_interleave(patches.shape[1]), shrinkage=shrinkage)
