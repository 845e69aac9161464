"""How loud music is, over time."""

from __future__ import annotations

import torch
from torch import Tensor

from presto_models.ditto.features.frames import frame_count, frame_length, in_blocks
from presto_models.ditto.features.savgol import SavitzkyGolay, odd_window

FLOOR = -80.0  # dB re full scale: all below it is silence, without a gradient; our choice
SMOOTHING = 1.0  # seconds; Music ControlNet's protocol, which the paper takes over
ORDER = 1  # of the smoothing polynomial [C]


class Loudness:
    """``loudness(audio)``: ``[B, samples]`` to smoothed dB re full scale ``[B, frames]``.

        savgol * 20 log10 max(RMS, floor)

    RMS of frames of :func:`frame_length` samples (``librosa.feature.rms``), a quarter of their length apart (our
    choice; 86 a second at 44.1 kHz), floor -80 dB, and a Savitzky-Golay filter of one second and order 1 (DITTO,
    2401.12179, section 4, which follows Music ControlNet, 2311.07069).
    """

    def __init__(
        self,
        samples: int,
        sample_rate: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.frame = frame_length(sample_rate)
        self.hop = self.frame // 4
        self.frames = frame_count(samples, self.hop)
        self.smooth = SavitzkyGolay(
            self.frames, odd_window(SMOOTHING, sample_rate / self.hop), ORDER, device=device, dtype=dtype
        )

    def power(self, audio: Tensor) -> Tensor:
        """RMS² of each frame, ``[B, frames]``."""
        return in_blocks(audio, self.frame, self.hop).square().sum(-1).unfold(-1, 4, 1).sum(-1) / self.frame

    def __call__(self, audio: Tensor) -> Tensor:
        return self.smooth(10 * self.power(audio).clamp_min(10 ** (FLOOR / 10)).log10())
