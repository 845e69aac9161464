"""Pictures for TensorBoard."""

from __future__ import annotations

import torch
from torch import Tensor

N_FFT, DECIBELS = 2048, 80.0


def spectrogram_image(audio: Tensor) -> Tensor:
    """``[3, H, W]`` in [0, 1]: the magnitude spectrogram of audio ``[channels, T]`` (their mean), 80 dB deep, low
    frequencies at the bottom."""
    mono = audio.float().mean(0)
    spectrum = torch.stft(mono, N_FFT, N_FFT // 4, window=torch.hann_window(N_FFT), return_complex=True).abs()
    level = 20 * torch.log10(spectrum.clamp(min=1e-5))
    return _coloured(((level - level.max()) / DECIBELS + 1).clamp(0, 1)[: N_FFT // 4].flip(0), "magma")


def latent_image(latents: Tensor) -> Tensor:
    """``[3, C, N]`` in [0, 1] of latents ``[N, C]``: three standard deviations either side of their mean."""
    latents = latents.float()
    spread = 6 * latents.std().clamp(min=1e-6)
    return _coloured(((latents - latents.mean()) / spread + 0.5).clamp(0, 1).T, "coolwarm")


def _coloured(values: Tensor, colours: str) -> Tensor:
    from matplotlib import colormaps

    return torch.from_numpy(colormaps[colours](values.numpy())[..., :3]).permute(2, 0, 1).float()
