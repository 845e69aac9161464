"""A discriminator that looks at complex spectra of several resolutions, and the least-squares losses around it.

After the multi-scale STFT discriminator of EnCodec (Défossez et al. 2022, 2210.13438) and UnivNet's (2106.07889).  Ours
cuts the frequency axis into bands of eight bins in its first convolution, which makes it cheap enough for a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

BAND = 8


@dataclass(frozen=True)
class DiscriminatorConfig:
    """One network per STFT length in ``fft_sizes`` (hop a quarter of it); ``channels``: their width."""

    fft_sizes: tuple[int, ...] = (2048, 1024, 512)
    channels: int = 48


class SpectralDiscriminator(nn.Module):
    """Audio ``[B, channels, T]`` to, for each resolution, (scores ``[B', 1, frames, bands]``, inner feature maps)."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.networks = nn.ModuleList(_Resolution(size, config.channels) for size in config.fft_sizes)

    def forward(self, audio: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        mono = audio.flatten(0, 1)
        return [network(mono) for network in self.networks]


class _Resolution(nn.Module):
    window: Tensor

    def __init__(self, n_fft: int, channels: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.layers = nn.ModuleList(
            (
                weight_norm(nn.Conv2d(2, channels, (3, BAND), (1, BAND), padding=(1, 0))),
                weight_norm(nn.Conv2d(channels, channels, 3, (1, 2), padding=1)),
                weight_norm(nn.Conv2d(channels, channels, 3, (2, 2), padding=1)),
                weight_norm(nn.Conv2d(channels, channels, 3, padding=1)),
            )
        )
        self.score = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        spectrum = torch.stft(audio, self.n_fft, self.n_fft // 4, window=self.window, return_complex=True)
        # Loudness compressed to |S|^0.4, phase kept: weak partials count too.
        h = torch.view_as_real(spectrum * (spectrum.abs() + 1e-3).pow(-0.6)).permute(0, 3, 2, 1)
        features = []
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.2)
            features.append(h)
        return self.score(h), features


def discriminator_loss(real: Sequence[tuple[Tensor, object]], fake: Sequence[tuple[Tensor, object]]) -> Tensor:
    """Mean over resolutions of mean (D(real) - 1)^2 + mean D(fake)^2 (LSGAN, 1611.04076)."""
    parts = [(r - 1).square().mean() + f.square().mean() for (r, _), (f, _) in zip(real, fake, strict=True)]
    return torch.stack(parts).mean()


def adversarial_loss(fake: Sequence[tuple[Tensor, object]]) -> Tensor:
    """Mean over resolutions of mean (D(fake) - 1)^2."""
    return torch.stack([(f - 1).square().mean() for f, _ in fake]).mean()


def feature_loss(real: Sequence[tuple[Tensor, list[Tensor]]], fake: Sequence[tuple[Tensor, list[Tensor]]]) -> Tensor:
    """Mean over resolutions and layers of mean |f_real - f_fake| / mean |f_real| (EnCodec's eq. 3)."""
    parts = [
        (r.detach() - f).abs().mean() / r.detach().abs().mean().clamp_min(1e-6)
        for (_, of_real), (_, of_fake) in zip(real, fake, strict=True)
        for r, f in zip(of_real, of_fake, strict=True)
    ]
    return torch.stack(parts).mean()
