"""How far a waveform is from the one it should be: signal-to-distortion, and spectral distances."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from presto_models.metrics.mel import mel_spectrogram, power_spectrogram

_FLOOR = 1e-10  # power: -100 dB below a full-scale unit; silence has a level too


class ReconstructionDistances(NamedTuple):
    """One value a clip, ``[B]`` each.  si_sdr: dB, larger is nearer.  stft: no unit.  mel, log_spectral: dB."""

    si_sdr: Tensor
    stft: Tensor
    mel: Tensor
    log_spectral: Tensor


def reconstruction_distances(estimate: Tensor, target: Tensor, sample_rate: int) -> ReconstructionDistances:
    """All four of estimate and target ``[B, T]``."""
    return ReconstructionDistances(
        si_sdr(estimate, target),
        stft_distance(estimate, target),
        mel_distance(estimate, target, sample_rate),
        log_spectral_distance(estimate, target),
    )


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019) of ``[B, T]``: ``[B]``, from torchmetrics.

    10 log10(|a t|² / |a t - e|²) with a = e·t / t·t.
    """
    try:
        from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio
    except ImportError as error:
        raise ImportError("SI-SDR needs torchmetrics: pip install 'presto-kernels[models]'") from error
    _check(estimate, target)
    return scale_invariant_signal_distortion_ratio(estimate.float(), target.float())


def stft_distance(estimate: Tensor, target: Tensor) -> Tensor:
    """Multi-resolution STFT distance of ``[B, T]``: ``[B]``, auraloss's: spectral convergence + log magnitude."""
    try:
        from auraloss.freq import MultiResolutionSTFTLoss
    except ImportError as error:
        raise ImportError("the STFT distance needs auraloss: pip install 'presto-kernels[models]'") from error
    _check(estimate, target)
    distance = MultiResolutionSTFTLoss().to(estimate.device)
    pairs = zip(estimate.float(), target.float(), strict=True)
    return torch.stack([distance(one[None, None], other[None, None]) for one, other in pairs])


def mel_distance(estimate: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """Mean |level difference| of the mel spectrograms of ``[B, T]``, dB: ``[B]``; Hann 2048, hop 512, 128 bands."""
    _check(estimate, target)
    levels = [
        _decibels(mel_spectrogram(audio.float(), sample_rate, n_fft=2048, hop=512, num_mels=128))
        for audio in (estimate, target)
    ]
    return (levels[0] - levels[1]).abs().mean((1, 2))


def log_spectral_distance(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean over frames of the root mean square over frequencies of the level difference, dB, of ``[B, T]``: ``[B]``."""
    _check(estimate, target)
    levels = [_decibels(power_spectrogram(audio.float(), 2048, 512)) for audio in (estimate, target)]
    return (levels[0] - levels[1]).square().mean(1).sqrt().mean(1)


def _decibels(power: Tensor) -> Tensor:
    return 10 * torch.log10(power.clamp_min(_FLOOR))


def _check(estimate: Tensor, target: Tensor) -> None:
    if estimate.dim() != 2 or estimate.shape != target.shape:
        raise ValueError(
            f"estimate and target must be [B, T] of one shape, got {tuple(estimate.shape)} and {tuple(target.shape)}"
        )
