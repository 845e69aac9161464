"""Music whose melody is that of a recording, or of notes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_models.ditto.control import Bound, Control, Span
from presto_models.ditto.features import Chroma
from presto_models.ditto.features.frames import frame_times
from presto_models.ditto.notes import REST, Notes
from presto_models.ditto.scene import Made, Scene

CLEAR = 0.2  # share of the strongest class in a frame that has a pitch: 90 % of music's, 1 % of noise's
QUIET = -60.0  # dB below the loudest frame: silence
SHORTEST = 0.5  # seconds that must have a pitch
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Melody(Control):
    """The strongest pitch class over time (DITTO, 2401.12179, section 4).

        error = mean over counted frames of -log chroma[class]          nats; log 12 = 2.48 where all sound alike

    Chroma is :class:`presto_models.ditto.features.Chroma`, high-passed and normalised in each frame.  Exactly one of:

    Args:
        notes: :class:`Notes`, or pitch classes (0: C ... 11: B, -1: rest), spread evenly over the length.
        reference: audio ``[channels, T]`` or ``[T]`` at ``sample_rate`` Hz, whose strongest class in each frame is
            asked for.  Frames that are silent (60 dB below its loudest) or have no clear pitch (no class with a fifth
            of the energy; both our choice) are not counted, nor those behind its end.

    Rests and what lies before the first note are not counted either.  Where the melody and the music differ in length
    the rest of either is left alone, and that is logged.
    """

    notes: Notes | Tensor | Sequence[int] | None = None
    reference: Tensor | None = None
    sample_rate: int | None = None

    def bind(self, scene: Scene) -> Bound:
        """Raises TypeError, ValueError: not exactly one melody, not a usable one, or none of it within the music."""
        if (self.notes is None) == (self.reference is None):
            came = "neither" if self.notes is None else "both"
            raise ValueError(f"Melody takes notes or a reference, got {came}")
        chroma = Chroma(scene.samples, scene.sample_rate, device=scene.device)
        hop = chroma.spectrum.hop
        times = frame_times(chroma.spectrum.frames, hop, scene.sample_rate)
        classes = self._of_reference(scene, chroma) if self.notes is None else self._of_notes(times, scene.seconds)
        if not bool((classes != REST).any()):
            raise ValueError(f"notes: none sounds within the {scene.seconds:g} s of the music")
        return _BoundMelody(self, scene, chroma, classes)

    def _of_notes(self, times: Tensor, seconds: float) -> Tensor:
        notes = self.notes if isinstance(self.notes, Notes) else _evenly(self.notes, seconds)
        if late := sum(start >= seconds for start in notes.seconds):
            _logger.warning("%d notes begin behind the music's end at %g s and are left out", late, seconds)
        return notes.at(times)

    def _of_reference(self, scene: Scene, chroma: Chroma) -> Tensor:
        """Classes of the reference, int64 ``[frames]`` on the CPU; -1: not counted."""
        if self.reference is None or self.sample_rate is None:
            raise ValueError("sample_rate must be given with reference")
        audio = scene.audio(self.reference, self.sample_rate).mean(0)
        if abs(apart := audio.shape[0] - scene.samples) > chroma.spectrum.hop:
            left = "behind that no melody is asked for" if apart < 0 else "what is longer is left out"
            own = audio.shape[0] / scene.sample_rate
            _logger.warning("the reference has %.2f s, the music %.2f s: %s", own, scene.seconds, left)
        fitted = audio.new_zeros(1, scene.samples)
        known = min(audio.shape[0], scene.samples)
        fitted[0, :known] = audio[:known]
        classes = reference_classes(fitted, chroma)
        counted = classes != REST
        if float(counted.sum()) * chroma.spectrum.hop / scene.sample_rate < min(SHORTEST, scene.seconds):
            raise ValueError(
                f"reference must have a clear pitch for at least {SHORTEST:g} s, got {int(counted.sum())} such frames "
                f"in {known / scene.sample_rate:.2f} s"
            )
        return classes.cpu()


def reference_classes(audio: Tensor, chroma: Chroma) -> Tensor:
    """The strongest pitch class in each frame of audio ``[1, samples]``, int64 ``[frames]``; -1: silent, or unclear."""
    power = chroma.spectrum(audio)
    energy, share = chroma.energy(power)[0], chroma.log(power)[0].exp()
    level = energy.sum(-1)
    sounds = level > max(10 ** (QUIET / 10) * float(level.max()), chroma.silence)
    return torch.where(sounds & (share.amax(-1) >= CLEAR), energy.argmax(-1), REST)


class _BoundMelody(Bound):
    name, kind = "melody", "melody"

    def __init__(self, control: Melody, scene: Scene, chroma: Chroma, classes: Tensor) -> None:
        self.weight, self.threshold, self.chroma = control.weight, control.threshold, chroma
        counted = classes != REST
        rows = torch.nn.functional.one_hot(classes.clamp_min(0), 12) * counted[:, None]
        self.target = rows.float().to(scene.device)  # a row of zeros: not counted
        self.count = int(counted.sum())
        self.spans = _runs(counted, chroma.spectrum.hop / scene.sample_rate, scene.seconds)

    def feature(self, made: Made) -> Tensor:
        """Log chroma ``[B, frames, 12]``."""
        spectrum = self.chroma.spectrum
        power = made.shared(spectrum.key, lambda: spectrum(made.mono))
        return made.shared("chroma", lambda: self.chroma.log(power))

    def error(self, made: Made) -> Tensor:
        return -(self.feature(made) * self.target).sum((1, 2)) / self.count

    def figures(self, made: Made) -> dict[str, Tensor]:
        """The share of counted frames whose strongest class is the one asked for."""
        strongest = torch.nn.functional.one_hot(self.feature(made).argmax(-1), 12)
        return {"accuracy": (strongest * self.target).sum((1, 2)) / self.count}


def _runs(counted: Tensor, hop: float, seconds: float) -> tuple[Span, ...]:
    """(from, to) of each run of counted frames; a frame reaches half a hop to either side."""
    edges = torch.diff(counted.int(), prepend=torch.zeros(1).int(), append=torch.zeros(1).int())
    starts, stops = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
    spans = ((max(0.0, (a - 0.5) * hop), min(seconds, (b - 0.5) * hop)) for a, b in zip(starts, stops, strict=True))
    return tuple(spans)


def _evenly(classes: object, seconds: float) -> Notes:
    if isinstance(classes, Tensor):
        if classes.dim() != 1 or classes.is_floating_point():
            raise TypeError(f"notes must be integers [n], got {classes.dtype} {tuple(classes.shape)}")
        classes = classes.tolist()
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise TypeError(f"notes must be Notes, or a tensor or list of pitch classes, got {type(classes).__name__}")
    return Notes(tuple(seconds * i / len(classes) for i in range(len(classes))), tuple(classes))
