"""Resampling and mel spectrograms in torch: batched, on any device, with gradients."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_ZERO_CROSSINGS = (
    32  # of the resampler's sinc on each side: -80 dB outside the pass band, 6 % of it given to the transition
)
_ROLLOFF = 0.94


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Audio ``[..., T]`` at ``from_rate`` Hz to ``[..., ceil(T to_rate / from_rate)]`` at ``to_rate`` Hz, fp32.

    Band-limited interpolation (Smith 1984): each output is the input under a sinc with a squared-cosine window, cut
    off at 0.94 of the lower Nyquist frequency.  One strided convolution, since with whole-number rates the sinc's
    offsets repeat.

    Raises:
        ValueError: a rate is not a positive whole number.  TypeError: ``audio`` is not floating point.
    """
    for name, rate in (("from_rate", from_rate), ("to_rate", to_rate)):
        if int(rate) != rate or rate <= 0:
            raise ValueError(f"{name} must be a positive whole number of Hz, got {rate}")
    if not audio.is_floating_point():
        raise TypeError(f"audio must be floating point, got {audio.dtype}")
    if from_rate == to_rate:
        return audio.float()
    shared = math.gcd(int(from_rate), int(to_rate))
    stride, phases = int(from_rate) // shared, int(to_rate) // shared
    kernel, reach = _sinc_kernel(stride, phases, audio.device)
    samples = audio.shape[-1]
    padded = torch.nn.functional.pad(audio.float().reshape(-1, 1, samples), (reach, reach + stride))
    out = torch.nn.functional.conv1d(padded, kernel, stride=stride)
    out = out.transpose(1, 2).flatten(1)[:, : -(-samples * phases // stride)]
    return out.reshape(*audio.shape[:-1], -1)


@lru_cache(maxsize=16)
def _sinc_kernel(stride: int, phases: int, device: torch.device) -> tuple[Tensor, int]:
    """``[phases, 1, taps]`` fp32, and how many input samples it reaches to the left.

    Kept on the device: a copy to it would wait for it, and cannot stand in a CUDA graph.
    """
    cutoff = _ROLLOFF * min(stride, phases) / stride  # of the input's Nyquist frequency
    reach = math.ceil(_ZERO_CROSSINGS / cutoff)
    taps = torch.arange(-reach, reach + stride, dtype=torch.float64)
    offsets = torch.arange(phases, dtype=torch.float64) * stride / phases
    t = (taps[None, :] - offsets[:, None]) * cutoff  # in zero crossings
    window = torch.cos((t / _ZERO_CROSSINGS).clamp(-1, 1) * torch.pi / 2).square()
    return (torch.sinc(t) * window * cutoff).float()[:, None].to(device), reach


@lru_cache(maxsize=16)
def mel_filters(sample_rate: int, n_fft: int, num_mels: int) -> Tensor:
    """Slaney's triangles of equal area from 0 Hz to Nyquist, librosa's default: ``[n_fft // 2 + 1, num_mels]`` fp32."""
    try:
        from transformers.audio_utils import mel_filter_bank
    except ImportError as error:
        raise ImportError("mel filters need transformers: pip install 'presto-kernels[models]'") from error
    filters = mel_filter_bank(
        n_fft // 2 + 1, num_mels, 0.0, sample_rate / 2, sample_rate, norm="slaney", mel_scale="slaney"
    )
    return torch.from_numpy(filters).float()


def power_spectrogram(audio: Tensor, n_fft: int, hop: int) -> Tensor:
    """|STFT|² of audio ``[..., T]``: ``[..., n_fft // 2 + 1, 1 + T // hop]``; Hann window, silence at both ends."""
    window = torch.hann_window(n_fft, device=audio.device, dtype=audio.dtype)
    flat = audio.reshape(-1, audio.shape[-1])
    spectrum = torch.stft(flat, n_fft, hop, window=window, center=True, pad_mode="constant", return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    return power.reshape(*audio.shape[:-1], *power.shape[-2:])


def mel_spectrogram(audio: Tensor, sample_rate: int, *, n_fft: int, hop: int, num_mels: int) -> Tensor:
    """Mel power of audio ``[..., T]``: ``[..., num_mels, 1 + T // hop]``, as ``librosa.feature.melspectrogram``."""
    filters = mel_filters(sample_rate, n_fft, num_mels).to(audio.device, audio.dtype)
    return torch.einsum("...ft,fm->...mt", power_spectrogram(audio, n_fft, hop), filters)
