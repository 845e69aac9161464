"""Noise of the same spectrum: what a model would make that knew the music's average sound and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

_WINDOW = 4096  # 11 Hz wide bins at 44.1 kHz: narrower than a semitone from 200 Hz up


def average_spectrum(clips: Tensor | Iterable[Tensor]) -> Tensor:
    """The long-term average power spectrum of mono clips, ``[B, T]`` or any number of ``[T]`` (Welch's method, Hann
    window).

    Returns ``[bins]`` float64; white noise of variance v has v in every bin.

    Raises:
        ValueError: no clip, or one that is not ``[T]`` with at least 4096 samples.
    """
    window = torch.hann_window(_WINDOW, dtype=torch.float64)
    total, count = torch.zeros(_WINDOW // 2 + 1, dtype=torch.float64), 0
    for clip in clips:
        if clip.dim() != 1 or len(clip) < _WINDOW:
            raise ValueError(f"clips must be mono, [T] with T >= {_WINDOW}, got {tuple(clip.shape)}")
        frames = clip.cpu().double().unfold(0, _WINDOW, _WINDOW // 2)
        total += torch.fft.rfft(frames * window).abs().square().mean(0)
        count += 1
    if not count:
        raise ValueError("clips must hold at least one clip, got none")
    return total / (count * window.square().sum())


def shaped_noise(spectrum: Tensor, num: int, samples: int, *, seed: int | Sequence[int]) -> Tensor:
    """Gaussian noise with the power spectrum of :func:`average_spectrum`: ``[num, samples]`` fp32, the same for the
    same seed.

    White noise times the root of the spectrum, interpolated to the frequencies of the whole length.
    """
    if spectrum.dim() != 1 or len(spectrum) < 2 or bool((spectrum < 0).any()):
        raise ValueError(f"spectrum must be [bins] without negative values, got {tuple(spectrum.shape)}")
    frequencies = np.fft.rfftfreq(samples)
    gain = np.sqrt(np.interp(frequencies, np.linspace(0, 0.5, len(spectrum)), spectrum.double().numpy()))
    rng = np.random.default_rng(seed)
    clips = [np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * gain, samples) for _ in range(num)]
    return torch.from_numpy(np.stack(clips)).float()
