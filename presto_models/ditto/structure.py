"""Music of a form: which of its parts sound alike."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_models.ditto.control import Bound, Control
from presto_models.ditto.features import SelfSimilarity, Timbre
from presto_models.ditto.features.correlation import pearson
from presto_models.ditto.features.frames import frame_times
from presto_models.ditto.features.timbre import SMOOTHING
from presto_models.ditto.scene import Made, Scene

_PART = re.compile(r"([A-Z])(\d+(?:\.\d+)?)?")
_FORM = re.compile(rf"\s*(?:{_PART.pattern}[\s,|-]*)+")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure(Control):
    """Musical form, as a matrix of which moments sound alike (DITTO, 2401.12179, section 4).

        error = mean over the matrix of (savgol2d * T T' - target)²,     T: MFCC, centred over time, unit length

    See :class:`presto_models.ditto.features.SelfSimilarity`.  Exactly one of:

    Args:
        form: capital letters, one for each part: ``"ABBA"``, parts of one length, or with relative lengths,
            ``"A4 B8 B8 A4"``; parts of one letter sound alike.  The target is the matrix the same feature gives for
            timbres as different from each other as can be: 1 within a letter, -1 between the letters of a form of two,
            -1/2 between three equal ones, smoothed as the music's.
        reference: audio ``[channels, T]`` or ``[T]`` at ``sample_rate`` Hz whose own matrix is asked for (transfer).
            One of another length than the music is resampled (bilinear) to it, and that is logged.
    """

    form: str | None = None
    reference: Tensor | None = None
    sample_rate: int | None = None

    def bind(self, scene: Scene) -> Bound:
        """Raises TypeError, ValueError: not exactly one structure, a form that does not parse, a part or a reference
        too short to be heard through the smoothing."""
        if (self.form is None) == (self.reference is None):
            came = "neither" if self.form is None else "both"
            raise ValueError(f"Structure takes a form or a reference, got {came}")
        timbre = Timbre(scene.samples, scene.sample_rate, device=scene.device)
        similarity = _similarity(timbre, scene)
        if self.form is not None:
            target = _of_form(self.form, scene.seconds, timbre, similarity)
        else:
            target = self._of_reference(scene, similarity.rows)
        return _BoundStructure(self, scene, timbre, similarity, target)

    def _of_reference(self, scene: Scene, rows: int) -> Tensor:
        if self.reference is None or self.sample_rate is None:
            raise ValueError("sample_rate must be given with reference")
        audio = scene.audio(self.reference, self.sample_rate).mean(0, keepdim=True)
        seconds = audio.shape[1] / scene.sample_rate
        if seconds < 2 * SMOOTHING:
            raise ValueError(f"reference must be at least {2 * SMOOTHING:g} s to have a structure, got {seconds:.2f} s")
        timbre = Timbre(audio.shape[1], scene.sample_rate, device=scene.device)
        own = _similarity(timbre, scene)(timbre(timbre.spectrum(audio)))
        if float(own.abs().max()) < 0.1:
            raise ValueError("reference must have more than one timbre, got silence or one unchanging sound")
        if own.shape[1] == rows:
            return own[0]
        _logger.warning(
            "the reference has %.2f s, the music %.2f s: its structure is resampled", seconds, scene.seconds
        )
        size = (rows, rows)
        return torch.nn.functional.interpolate(own[None], size, mode="bilinear", align_corners=True)[0, 0]


class _BoundStructure(Bound):
    name, kind = "structure", "structure"

    def __init__(
        self, control: Structure, scene: Scene, timbre: Timbre, similarity: SelfSimilarity, target: Tensor
    ) -> None:
        self.weight, self.threshold, self.target = control.weight, control.threshold, target
        self.spans = ((0.0, scene.seconds),)
        self.timbre, self.similarity = timbre, similarity

    def feature(self, made: Made) -> Tensor:
        """The smoothed self-similarity ``[B, rows, rows]``."""
        spectrum = self.timbre.spectrum
        power = made.shared(spectrum.key, lambda: spectrum(made.mono))
        return made.shared("self-similarity", lambda: self.similarity(self.timbre(power)))

    def error(self, made: Made) -> Tensor:
        return (self.feature(made) - self.target).square().mean((1, 2))

    def figures(self, made: Made) -> dict[str, Tensor]:
        """The correlation of the two matrices."""
        return {"correlation": pearson(self.feature(made).flatten(1), self.target.flatten())}


def parts_of(form: str) -> tuple[tuple[str, float], ...]:
    """(letter, relative length) of each part of ``"ABBA"`` or ``"A4 B8 B8 A4"``; a length left out is 1.

    Raises:
        TypeError, ValueError: no such form, a length of 0, or one letter only: without another sound there is none to
            be different from.
    """
    fits = 'capital letters, one for each part, such as "ABBA", with relative lengths where they differ, "A4 B8 A4"'
    if not isinstance(form, str):
        raise TypeError(f"form must be {fits}; got {type(form).__name__}")
    if _FORM.fullmatch(form) is None:
        raise ValueError(f"form must be {fits}; got {form!r}")
    parts = tuple((letter, float(length or 1)) for letter, length in _PART.findall(form))
    if not all(0 < length < math.inf for _, length in parts):
        raise ValueError(f"form must have parts of finite lengths above 0, got {form!r}")
    if len({letter for letter, _ in parts}) < 2:
        raise ValueError(f"form must have at least two different letters, got {form!r}")
    return parts


def _similarity(timbre: Timbre, scene: Scene) -> SelfSimilarity:
    spectrum = timbre.spectrum
    return SelfSimilarity(spectrum.frames, scene.sample_rate / spectrum.hop, device=scene.device)


def _of_form(form: str, seconds: float, timbre: Timbre, similarity: SelfSimilarity) -> Tensor:
    parts = parts_of(form)
    whole = sum(length for _, length in parts)
    shortest = min(length for _, length in parts) / whole * seconds
    if shortest < SMOOTHING / 2:
        raise ValueError(
            f"form has parts of {shortest:.2f} s in {seconds:g} s of music; they must have at least {SMOOTHING / 2:g} s"
        )
    ends = torch.tensor([length for _, length in parts], dtype=torch.float64).cumsum(0) / whole * seconds
    spectrum = timbre.spectrum
    times = frame_times(spectrum.frames, spectrum.hop, spectrum.sample_rate)
    part = torch.searchsorted(ends, times, right=True).clamp_max(len(parts) - 1)
    letters = sorted({letter for letter, _ in parts})
    letter = torch.tensor([letters.index(letter) for letter, _ in parts])[part]
    timbres = torch.nn.functional.one_hot(letter, len(letters)).float().to(spectrum.window.device)
    return similarity(timbres[None])[0]
