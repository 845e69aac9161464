"""Which blocks of a diffusion transformer run at which noise level, as frozen data.

A block that is not kept is not run: at high noise a diffusion transformer needs fewer of them (ASE, 2408.05927;
Presto-L, 2410.05167).  Everything here is host arithmetic on plain numbers, so that choosing the blocks never asks the
device.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

_DEFAULT_DEPTH = 24
_DEFAULT_EDGES = (0.8, 6.0, 40.0)
_DEFAULT_BUDGETS = (20, 18, 14, 10)


@dataclass(frozen=True)
class LayerSchedule:
    """How many blocks run at each noise level, and which.

    With edges ``e_1 < ... < e_{K-1}`` and budgets ``b_0 ... b_{K-1}``, clean to noisy, the budget at sigma is ``b_k``
    with ``k = #{i : e_i <= sigma}``: an edge belongs to the noisier side.  A budget b keeps the first
    ``b - keep_last`` and the last ``keep_last`` blocks, so that what is dropped lies inside (Presto-L);
    ``keep_last=0`` drops the last blocks (ASE).

    Args:
        num_blocks: depth of the full model.
        sigmas: the K-1 strictly increasing inner edges, in units of sigma (not its logarithm).
        budgets: K block counts from clean to noisy, each from ``max(1, keep_last)`` to ``num_blocks``.
        keep_last: how many of the last blocks every budget keeps.

    Raises:
        TypeError: a value is not a plain number (a tensor, say).
        ValueError: values that do not fit each other.

    Which edges and budgets are good is measured per model; the paper's could not be read, so :meth:`default` is our
    choice.
    """

    num_blocks: int
    sigmas: tuple[float, ...]
    budgets: tuple[int, ...]
    keep_last: int = 1

    def __post_init__(self) -> None:
        num_blocks = _host_int("num_blocks", self.num_blocks)
        keep_last = _host_int("keep_last", self.keep_last)
        sigmas = tuple(_host_sigma(f"sigmas[{i}]", s) for i, s in enumerate(self.sigmas))
        budgets = tuple(_host_int(f"budgets[{i}]", b) for i, b in enumerate(self.budgets))
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
        if not 0 <= keep_last <= num_blocks:
            raise ValueError(f"keep_last must be from 0 to num_blocks = {num_blocks}, got {keep_last}")
        if len(budgets) != len(sigmas) + 1:
            raise ValueError(
                f"budgets must have one entry more than sigmas (inner edges): got {len(budgets)} and {len(sigmas)}"
            )
        if any(not math.isfinite(s) or s <= 0 for s in sigmas) or any(a >= b for a, b in pairwise(sigmas)):
            raise ValueError(f"sigmas must be positive, finite and strictly increasing, got {sigmas}")
        lowest = max(1, keep_last)
        if any(not lowest <= b <= num_blocks for b in budgets):
            raise ValueError(
                f"budgets must be from {lowest} (keep_last is {keep_last}) to num_blocks = {num_blocks}, got {budgets}"
            )
        # Lists and numpy numbers are welcome; what is stored is plain, hashable and JSON-ready.
        object.__setattr__(self, "num_blocks", num_blocks)
        object.__setattr__(self, "sigmas", sigmas)
        object.__setattr__(self, "budgets", budgets)
        object.__setattr__(self, "keep_last", keep_last)

    @classmethod
    def full(cls, num_blocks: int, *, keep_last: int = 1) -> LayerSchedule:
        """Every block at every noise level."""
        return cls(num_blocks, (), (num_blocks,), keep_last)

    @classmethod
    def default(cls, num_blocks: int, *, keep_last: int = 1) -> LayerSchedule:
        """Our default, not the paper's: edges (0.8, 6, 40); budgets (20, 18, 14, 10) at 24 blocks.

        Other depths scale the budgets and round them, halves up.
        """
        depth = _host_int("num_blocks", num_blocks)
        lowest = max(1, keep_last)
        scaled = ((2 * b * depth + _DEFAULT_DEPTH) // (2 * _DEFAULT_DEPTH) for b in _DEFAULT_BUDGETS)
        return cls(depth, _DEFAULT_EDGES, tuple(max(lowest, b) for b in scaled), keep_last)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerSchedule:
        """The schedule :meth:`to_dict` wrote, as it stands in a checkpoint's config."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def budget(self, sigma: float) -> int:
        """How many blocks run at noise level ``sigma``, a host number >= 0."""
        return self.budgets[bisect_right(self.sigmas, _host_sigma("sigma", sigma))]

    def kept(self, sigma: float) -> tuple[int, ...]:
        """Indices of the blocks that run at noise level ``sigma``, increasing."""
        return (
            *range(self.budget(sigma) - self.keep_last),
            *range(self.num_blocks - self.keep_last, self.num_blocks),
        )


def _host_int(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    return int(value)


def _host_sigma(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name} must be a plain number, got {type(value).__name__}: blocks are chosen on the host, "
            "so keep the schedule's noise levels as Python floats (reading a tensor would wait for the device)"
        )
    sigma = float(value)
    if math.isnan(sigma) or sigma < 0:
        raise ValueError(f"{name} must be at least 0, got {sigma}")
    return sigma
