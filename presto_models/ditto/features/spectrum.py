"""The power spectrogram that chroma and timbre share."""

from __future__ import annotations

import torch
from torch import Tensor

from presto_models.ditto.features.frames import frame_count, frame_length, in_blocks


class Spectrum:
    """``spectrum(audio)``: ``[B, T]`` to power ``[B, frames, n_fft // 2 + 1]``; silence at both ends.

    |STFT|² in frames of :func:`frame_length` samples under a periodic Hann window, as ``librosa.stft`` has it.  Frames
    are half of their length apart (our choice: at a quarter of it a step pays twice as much).  ``key`` names it among
    what controls share.
    """

    def __init__(
        self,
        samples: int,
        sample_rate: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.sample_rate = sample_rate
        self.n_fft = frame_length(sample_rate)
        self.hop = self.n_fft // 2
        self.frames = frame_count(samples, self.hop)
        self.window = torch.hann_window(self.n_fft, dtype=torch.float64).to(device=device, dtype=dtype)
        self.key = ("power", self.n_fft, self.hop)

    def __call__(self, audio: Tensor) -> Tensor:
        # Two halves side by side and not torch.stft: the gradient of its overlapping frames takes longer than the rest.
        blocks = in_blocks(audio, self.n_fft, self.hop)
        spectrum = torch.fft.rfft(torch.cat((blocks[:, :-1], blocks[:, 1:]), -1) * self.window)
        return torch.view_as_real(spectrum).square().sum(-1)
