"""Sets of embedded clips, and bootstrap intervals that resample whole pieces.

The patches of a clip are alike, and so are the clips of a piece: they are not independent draws.  An interval that
resampled patches would be several times too narrow.  So a resample draws pieces with replacement and takes all clips
of each, as often as it was drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_numbers = itertools.count()


@dataclass(frozen=True)
class EmbeddedClips:
    """Clips of one kind.

    Attributes:
        embeddings: ``[clips, patches, D]``, float64, finite.
        pieces: which piece of music each clip is of, ``clips`` names.
    """

    embeddings: Tensor
    pieces: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.embeddings.dim() != 3 or 0 in self.embeddings.shape:
            raise ValueError(
                f"embeddings must be [clips, patches, D], none of them 0, got {tuple(self.embeddings.shape)}"
            )
        if not torch.isfinite(self.embeddings).all():
            raise ValueError("embeddings must be finite, got nan or infinity: is the audio finite?")
        if len(self.pieces) != len(self.embeddings):
            raise ValueError(
                f"pieces must name one piece a clip: got {len(self.pieces)} for {len(self.embeddings)} clips"
            )
        object.__setattr__(self, "embeddings", self.embeddings.detach().cpu().double())
        object.__setattr__(self, "pieces", tuple(self.pieces))

    @classmethod
    def of(cls, embeddings: Tensor | EmbeddedClips, pieces: Sequence[str] | None = None) -> EmbeddedClips:
        """From ``[clips, patches, D]``, or ``[clips, D]``: one patch each; without ``pieces`` every clip is its own."""
        if isinstance(embeddings, EmbeddedClips):
            return embeddings
        if embeddings.dim() == 2:
            embeddings = embeddings[:, None]
        if pieces is None:  # names no two sets share: clips without a piece are never taken for the same music
            pieces = [f"unnamed {next(_numbers)}" for _ in range(len(embeddings))]
        return cls(embeddings, tuple(pieces))

    @property
    def means(self) -> Tensor:
        """One embedding a clip: ``[clips, D]``."""
        return self.embeddings.mean(1)

    def patches(self) -> Tensor:
        """``[clips patches, D]``, clip by clip."""
        return self.embeddings.flatten(0, 1)

    def resamples(self, draws: int, seed: int) -> Tensor:
        """How often each clip is in each of ``draws`` bootstrap resamples: whole numbers ``[draws, clips]``, float64.

        Sets of the same pieces in the same order get the same resamples from the same seed, so that a comparison of
        pairs stays one.
        """
        names = {name: number for number, name in enumerate(dict.fromkeys(self.pieces))}
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
        return torch.from_numpy(counts[:, [names[name] for name in self.pieces]]).double()


@dataclass(frozen=True)
class Interval:
    """A figure and the range it would fall in, 95 of 100 times, with other clips; nan where there is no range."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, draws: Tensor, level: float = 0.95) -> Interval:
        """From bootstrap draws ``[draws]``: ``value`` plus the quantiles of (draw - the draws' mean).

        Centred, because a distance like FAD is larger in every resample than in the sample (a resample has fewer
        different clips): plain quantiles would count this bias a second time.
        """
        tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=draws.dtype)
        low, high = torch.quantile(draws - draws.mean(), tail).tolist()
        return cls(value, value + low, value + high)

    def as_dict(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high}
