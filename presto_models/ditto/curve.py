"""A loudness curve, drawn by hand or read from a file."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from presto_models.ditto.features.loudness import FLOOR
from presto_models.ditto.tables import check_times, number, read_table

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """Points of a loudness curve: ``seconds``, increasing from 0 or later on, and ``db`` re full scale, -80 to 0.

    0 dB is the RMS of a square wave that fills the range; smoothed, music is mostly between -35 and -15.

    Raises:
        ValueError: fewer than two points, lengths that differ, times that do not increase, NaN, dB out of range.
    """

    seconds: tuple[float, ...]
    db: tuple[float, ...]

    def __post_init__(self) -> None:
        seconds, db = tuple(float(t) for t in self.seconds), tuple(float(v) for v in self.db)
        object.__setattr__(self, "seconds", seconds)
        object.__setattr__(self, "db", db)
        if len(seconds) != len(db):
            raise ValueError(f"curve: there must be as many dB values as times, got {len(db)} for {len(seconds)}")
        if len(seconds) < 2:
            raise ValueError(f"curve must have at least 2 points, got {len(seconds)}")
        check_times(seconds, "curve")
        for value in db:
            if not FLOOR <= value <= 0:  # NaN is in no range
                raise ValueError(f"curve: dB must be {FLOOR:g} to 0 (full scale), got {value:g}")

    def at(self, times: Tensor, seconds: float) -> Tensor:
        """dB at each of ``times`` of music of so many ``seconds``, linear between points, float64.

        A curve that ends earlier or later than the music is stretched to it, which is said: a shape was drawn, not
        moments.  Before its first point it holds that point's value.
        """
        own = np.asarray(self.seconds)
        if not math.isclose(own[-1], seconds, rel_tol=1e-3, abs_tol=0.02):
            _logger.warning("the curve ends at %g s and the music at %g s: stretched to it", own[-1], seconds)
        own = own * (seconds / own[-1])
        return torch.from_numpy(np.interp(times.numpy(), own, np.asarray(self.db)))


def read_curve(path: str | os.PathLike[str]) -> Curve:
    """Of a CSV file with the header ``seconds,db``.

    Raises:
        FileNotFoundError, ValueError: says which line of which file, what came and what fits.
    """
    table = read_table(path, "db")
    db = tuple(number(value, f"{path}, line {line}: db") for line, _, value in table)
    try:
        return Curve(tuple(seconds for _, seconds, _ in table), db)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
