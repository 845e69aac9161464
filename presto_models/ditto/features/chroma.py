"""Which of the twelve pitch classes sound, over time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from presto_models.ditto.features.spectrum import Spectrum

HIGH_PASS = 261.0  # Hz, just below middle C: the bass is not the melody [P/C]
SILENCE = -100.0  # dB re a full-scale sine: a frame much below it has all classes alike; our choice
EVEN = 1e-3  # share of the energy that is spread evenly: bounds the gradient of the log; our choice


class Chroma:
    """``chroma.log(power)``: ``[B, frames, 12]``, the log of each pitch class's share of a frame, C first.

    The chroma filter bank of Ellis (2007) at A4 = 440 Hz on the power spectrogram, as ``librosa.feature.chroma_stft``
    with ``tuning=0``, behind a high-pass biquad (second-order Butterworth, -3 dB at 261 Hz), whose power gain

        |H(f)|² = r⁴ / (1 + r⁴),        r = tan(pi f / rate) / tan(pi 261 / rate)

    is multiplied into the filter bank.  Shares add up to 1 in every frame: else a louder frame would be a better one.
    DITTO, 2401.12179, section 4: the log of a high-passed chromagram, as in Music ControlNet (2311.07069).
    The floor, -100 dB, under which a frame has all classes alike, and the thousandth of its energy that every frame
    spreads evenly over the classes, which bounds the log, are our choice, as is the Butterworth.
    """

    def __init__(
        self,
        samples: int,
        sample_rate: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        try:
            from transformers.audio_utils import chroma_filter_bank
        except ImportError as error:
            raise ImportError("chroma needs transformers: pip install 'presto-kernels[models]'") from error
        if sample_rate <= 2 * HIGH_PASS:
            raise ValueError(f"sample_rate must be above {2 * HIGH_PASS:g} Hz for chroma, got {sample_rate}")
        self.spectrum = Spectrum(samples, sample_rate, device=device, dtype=dtype)
        n_fft = self.spectrum.n_fft
        bank = torch.from_numpy(chroma_filter_bank(n_fft, 12, sample_rate)).double()
        self.bank = (bank * high_pass_gain(n_fft, sample_rate)).T.to(device=device, dtype=dtype)
        self.silence = 10 ** (SILENCE / 10) * (n_fft / 4) ** 2  # a full-scale sine's highest bin is (n_fft / 4)²

    def energy(self, power: Tensor) -> Tensor:
        """Of each pitch class, ``[B, frames, 12]``, from ``spectrum(audio)``."""
        return power @ self.bank

    def log(self, power: Tensor) -> Tensor:
        energy = self.energy(power)
        lifted = energy + EVEN * energy.mean(-1, keepdim=True) + self.silence
        return lifted.log() - lifted.sum(-1, keepdim=True).log()


def high_pass_gain(n_fft: int, sample_rate: int) -> Tensor:
    """|H|² of the biquad at each bin, ``[n_fft // 2 + 1]`` float64."""
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) / n_fft
    # cot and not tan, which has no value at half the sample rate.
    cot = 1 / torch.tan(math.pi * bins[1:-1])
    gain = 1 / (1 + (cot * math.tan(math.pi * HIGH_PASS / sample_rate)) ** 4)
    return torch.cat((gain.new_zeros(1), gain, gain.new_ones(1)))
