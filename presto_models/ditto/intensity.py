"""Music that is as loud as a curve says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_models.ditto.control import Bound, Control
from presto_models.ditto.curve import Curve
from presto_models.ditto.features import Loudness
from presto_models.ditto.features.correlation import pearson
from presto_models.ditto.features.frames import frame_times
from presto_models.ditto.scene import Made, Scene


@dataclass(frozen=True, kw_only=True, eq=False)
class Intensity(Control):
    """Loudness over time (DITTO, 2401.12179, section 4).

        error = mean over frames of (smoothed dB - curve)²                          dB²
        error = 1 - Pearson correlation of smoothed dB and curve over the frames    with ``correlation``: 0 to 2

    Smoothed dB is :class:`presto_models.ditto.features.Loudness`.  The correlation asks for the curve's shape and
    leaves its level and its range to the music.

    Args:
        curve: a :class:`Curve`, or a tensor ``[n]`` or list of dB values, spread evenly from the first to the last
            moment.  Resampled linearly to the feature's frames; a :class:`Curve` of another length than the music is
            stretched to it, and that is logged.
        correlation: which of the two errors.
    """

    curve: Curve | Tensor | Sequence[float]
    correlation: bool = False

    def bind(self, scene: Scene) -> Bound:
        """Raises TypeError, ValueError: the curve is none, or does not change where its shape is what counts."""
        loudness = Loudness(scene.samples, scene.sample_rate, device=scene.device)
        curve = self.curve if isinstance(self.curve, Curve) else _evenly(self.curve, scene.seconds)
        target = curve.at(frame_times(loudness.frames, loudness.hop, scene.sample_rate), scene.seconds)
        if self.correlation and float(target.std(correction=0)) < 0.1:
            raise ValueError(
                "curve must change for correlation=True, got the same dB throughout; leave correlation off"
            )
        return _BoundIntensity(self, scene, loudness, target.float().to(scene.device))


class _BoundIntensity(Bound):
    name, kind = "intensity", "loudness"

    def __init__(self, control: Intensity, scene: Scene, loudness: Loudness, target: Tensor) -> None:
        self.weight, self.threshold, self.target = control.weight, control.threshold, target
        self.spans = ((0.0, scene.seconds),)
        self.loudness, self.correlation = loudness, control.correlation
        self.changes = float(target.std(correction=0)) >= 0.1

    def feature(self, made: Made) -> Tensor:
        """Smoothed dB ``[B, frames]``."""
        return made.shared("loudness", lambda: self.loudness(made.mono))

    def error(self, made: Made) -> Tensor:
        if self.correlation:
            return 1 - pearson(self.feature(made), self.target)
        return (self.feature(made) - self.target).square().mean(1)

    def figures(self, made: Made) -> dict[str, Tensor]:
        """Mean |dB| apart, and where the curve changes their correlation."""
        obtained = self.feature(made)
        figures = {"mean absolute error (dB)": (obtained - self.target).abs().mean(1)}
        if self.changes:
            figures["correlation"] = pearson(obtained, self.target)
        return figures


def _evenly(values: Tensor | Sequence[float], seconds: float) -> Curve:
    if isinstance(values, str) or not isinstance(values, (Tensor, Sequence)):
        raise TypeError(f"curve must be a Curve, a tensor or a list of dB values, got {type(values).__name__}")
    try:
        values = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"curve must hold numbers: {error}") from error
    if values.dim() != 1 or len(values) < 2:
        raise ValueError(f"curve must be [n] dB values, at least 2, got {tuple(values.shape)}")
    return Curve(tuple(torch.linspace(0, seconds, len(values)).tolist()), tuple(values.tolist()))
