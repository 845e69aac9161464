"""Inversion: the noise whose music is a recording.

    error = mean over latents and channels of (x - z)^2  +  spectral * mean over mel bands and frames of (m - m_ref)^2

z: what the DiT works on, of the recording.  m: log10 of mel power, in bels, of the audio; 128 bands, frames of 2048
samples, 512 apart.

Real-audio inversion is named in DITTO's appendix D (2401.12179) [P]; its text we have not, so the distance is ours [O].
It is one between latents, since a decoder that makes its own phases (:mod:`presto_models.autoencoders.spectral`) says
nothing in a waveform distance; the spectral term hears what the decoder makes of them, at the cost of decoding at each
step.  The noise found starts edits: give it as ``start`` of the next optimisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_models.ditto.control import Bound, Control
from presto_models.ditto.painting import check_as_long
from presto_models.ditto.scene import Made, Scene
from presto_models.metrics.mel import mel_filters, power_spectrogram

N_FFT, HOP, BANDS = 2048, 512, 128
FLOOR = 1e-4  # of mel power: a full-scale sine has some 1e3 in its band, so this is 70 dB below


@dataclass(frozen=True, kw_only=True, eq=False)
class Inversion(Control):
    """Music that is a recording.

    Args:
        reference: ``[channels, samples]`` or ``[samples]``, floating point; as long as the music, within a latent.
        sample_rate: Hz, of the reference.
        spectral: weight of the spectral term; 0: latents alone, and nothing is decoded.
    """

    reference: Tensor
    sample_rate: int
    spectral: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.spectral < math.inf:
            raise ValueError(f"spectral must be at least 0 and finite, got {self.spectral}")

    def bind(self, scene: Scene) -> Bound:
        reference = scene.audio(self.reference, self.sample_rate)
        check_as_long(reference, scene)
        return _Inverted(self, scene, reference)


class _Inverted(Bound):
    name, kind = "inversion", "latents"

    def __init__(self, control: Inversion, scene: Scene, reference: Tensor) -> None:
        self.weight, self.threshold, self.spectral = control.weight, control.threshold, control.spectral
        self.target, self.spans = scene.encode(reference), ((0.0, scene.seconds),)
        if self.spectral:
            self.filters = mel_filters(scene.sample_rate, N_FFT, BANDS).to(scene.device)
            mono = reference.mean(0)[: scene.samples]
            mono = torch.nn.functional.pad(mono, (0, scene.samples - mono.shape[0]))  # less than a latent of it
            self.mel = self._bels(mono[None])

    def feature(self, made: Made) -> Tensor:
        return made.x

    def error(self, made: Made) -> Tensor:
        latents = self._latents(made)
        return latents + self.spectral * self._mel(made) if self.spectral else latents

    def figures(self, made: Made) -> dict[str, Tensor]:
        if not self.spectral:
            return {}
        return {"latents": self._latents(made), "mel, bel^2": self._mel(made)}

    def _latents(self, made: Made) -> Tensor:
        return (made.x - self.target).square().mean((1, 2))

    def _mel(self, made: Made) -> Tensor:
        return (self._bels(made.mono) - self.mel).square().mean((1, 2))

    def _bels(self, mono: Tensor) -> Tensor:
        power = torch.einsum("bft,fm->bmt", power_spectrogram(mono, N_FFT, HOP), self.filters)
        return power.clamp_min(FLOOR).log10()
