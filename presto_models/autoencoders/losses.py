"""What trains an autoencoder: spectra at several resolutions, mel, waveform, KL."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """Weights of the parts; 0 leaves a part out.

    Args:
        stft: multi-resolution STFT (auraloss: spectral convergence and log magnitude; Yamamoto et al., 1910.11480).
        mel: L1 of log mel.
        complex: L1 of the complex spectra, compressed to |S|^0.4; the only part that hears phase.
        kl: of the posterior from a standard normal, mean over latents and channels.
        fft_sizes: of the STFTs; hops are a quarter of them.
    """

    stft: float = 1.0
    mel: float = 1.0
    complex: float = 1.0
    kl: float = 1e-3
    fft_sizes: tuple[int, ...] = (4096, 2048, 1024, 512, 256)
    mel_bins: int = 128


class AutoencoderLoss(nn.Module):
    """``loss(audio, output, mean, log_variance)`` → (total, parts), audio and output ``[B, channels, T]`` fp32."""

    window: Tensor

    def __init__(self, config: AutoencoderLossConfig, sample_rate: int) -> None:
        super().__init__()
        import auraloss.freq

        self.config = config
        sizes = config.fft_sizes
        self.stft = auraloss.freq.MultiResolutionSTFTLoss(
            fft_sizes=list(sizes), hop_sizes=[n // 4 for n in sizes], win_lengths=list(sizes), eps=1e-6
        )
        self.mel = auraloss.freq.STFTLoss(
            fft_size=2048,
            hop_size=512,
            win_length=2048,
            w_sc=0.0,
            w_log_mag=1.0,
            scale="mel",
            n_bins=config.mel_bins,
            sample_rate=sample_rate,
            eps=1e-6,
        )
        self.register_buffer("window", torch.hann_window(2048), persistent=False)

    def forward(
        self, audio: Tensor, output: Tensor, mean: Tensor, log_variance: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        parts: dict[str, Tensor] = {}
        if self.config.stft:
            parts["stft"] = self.stft(output, audio)
        if self.config.mel:
            parts["mel"] = self.mel(output, audio)
        if self.config.complex:
            parts["complex"] = (self._compressed(output) - self._compressed(audio)).abs().mean()
        if self.config.kl:
            parts["kl"] = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        total = sum((getattr(self.config, name) * part for name, part in parts.items()), mean.new_zeros(()))
        return total, parts

    def _compressed(self, audio: Tensor) -> Tensor:
        spectrum = torch.stft(audio.flatten(0, 1), 2048, 512, window=self.window, return_complex=True)
        return torch.view_as_real(spectrum * (spectrum.abs() + 1e-3).pow(-0.6))
