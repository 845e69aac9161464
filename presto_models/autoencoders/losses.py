"""What trains an autoencoder: its frames, the spectra of its audio at several resolutions, mel, KL."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from presto_models.autoencoders.spectral import FLOOR, Frames


@dataclass(frozen=True)
class FrameLossConfig:
    """Weights of the parts of :class:`FrameLoss`.

    Args:
        log_magnitude: L1 of ln(|S| + floor), bins weighted by 1 / (1 + f / corner), as hearing does.
        magnitude: L1 of |S|^0.5: what is loud counts more.
        convergence: | |S_output| - |S| | / | |S| |, Euclidean over a sample's frames and bins: the peaks.
        advance: squared distance of the phase advance from its unit vector, weighted by |S|^0.5.
        kl: of the posterior from a standard normal, mean over latents and channels.
        corner: Hz.
    """

    log_magnitude: float = 1.0
    magnitude: float = 0.5
    convergence: float = 0.5
    advance: float = 1.0
    kl: float = 3e-3
    corner: float = 2000.0


class FrameLoss(nn.Module):
    """``loss(target, output, mean, log_variance)`` → (total, parts), of two :class:`Frames`: no waveform is made, which
    makes a step several times faster than spectra of the output do.
    """

    weight: Tensor

    def __init__(self, config: FrameLossConfig, *, sample_rate: int, bins: int) -> None:
        super().__init__()
        self.config = config
        weight = 1 / (1 + torch.linspace(0, sample_rate / 2, bins) / config.corner)
        self.register_buffer("weight", weight / weight.mean(), persistent=False)

    def forward(
        self, target: Frames, output: Frames, mean: Tensor, log_variance: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        wanted, made = target.magnitude, output.magnitude
        loud = wanted.sqrt()
        tonal = loud[..., : target.advance.shape[2]]
        distance = (output.advance - target.advance).square().sum(-1)
        parts = {
            "log_magnitude": (self.weight * (output.log_magnitude - target.log_magnitude).abs()).mean(),
            "magnitude": ((made + FLOOR).sqrt() - (wanted + FLOOR).sqrt()).abs().mean(),
            "convergence": _convergence(made, wanted),
            "advance": (tonal * distance).sum() / tonal.sum().clamp_min(1e-6),
            "kl": kl_divergence(mean, log_variance),
        }
        return _weighted(parts, self.config), parts


@dataclass(frozen=True)
class AudioLossConfig:
    """Weights of the parts of :class:`AudioLoss`; 0 leaves a part out.

    Args:
        stft: multi-resolution STFT (auraloss: spectral convergence and log magnitude; Yamamoto et al., 1910.11480).
        mel: L1 of log mel.
        fft_sizes: of the STFTs; hops are a quarter of them.
        mel_bins: of the mel spectrum.
    """

    stft: float = 1.0
    mel: float = 1.0
    fft_sizes: tuple[int, ...] = (4096, 1024, 256)
    mel_bins: int = 128


class AudioLoss(nn.Module):
    """``loss(audio, output)`` → (total, parts), both ``[B, channels, T]``, fp32, T longer than the longest STFT."""

    def __init__(self, config: AudioLossConfig, *, sample_rate: int) -> None:
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

    def forward(self, audio: Tensor, output: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        parts = {name: getattr(self, name)(output, audio) for name in ("stft", "mel") if getattr(self.config, name)}
        return _weighted(parts, self.config), parts


def _convergence(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of |output - target| / |target|, |target| at least 1 so that silence does not divide by 0."""
    distance, size = (output - target).flatten(1).norm(dim=1), target.flatten(1).norm(dim=1)
    return (distance / size.clamp_min(1.0)).mean()


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of Normal(mean, exp(log_variance)) from the standard normal, mean over all elements (2 x Kingma & Welling)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def _weighted(parts: dict[str, Tensor], config: object) -> Tensor:
    return torch.stack([getattr(config, name) * part for name, part in parts.items()]).sum()
