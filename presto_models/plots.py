"""Pictures of audio: waveform and mel spectrogram."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from presto_models.files import written_beside

FORMATS = (".png", ".pdf", ".svg", ".jpg")
MEL_BINS, N_FFT, HOP = 128, 4096, 1024
TICKS = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)  # Hz
RANGE_DB = 80.0  # what is shown below the loudest


def check_plot_path(path: str | os.PathLike[str]) -> Path:
    """``path``, where a picture of its kind can be made here; ValueError or ImportError otherwise."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"plot must end in {', '.join(FORMATS)}; got {str(path)!r}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'presto-kernels[models]'") from error
    return path


def plot_audio(waveform: Tensor, sample_rate: int, path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Waveform of every channel over the mel spectrogram of their mean, to a picture file.

    Args:
        waveform: ``[channels, samples]``, on any device.
        path: ends in one of ``FORMATS``; written beside and renamed.
    """
    path = check_plot_path(path)
    if waveform.dim() != 2 or waveform.shape[1] < 1 or not waveform.is_floating_point():
        raise ValueError(f"waveform must be floating-point [channels, samples], got {tuple(waveform.shape)}")
    from matplotlib.figure import Figure

    audio = waveform.detach().float().cpu()
    seconds = audio.shape[1] / sample_rate
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    wave, mel = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    for name, channel in zip(("left", "right") if audio.shape[0] == 2 else ("mono",), audio, strict=False):
        times, low, high = _outline(channel, seconds)
        wave.fill_between(times, low, high, alpha=0.6, linewidth=0.3, label=name)
    wave.set(ylabel="amplitude", ylim=(-1.05, 1.05), title=title)
    wave.legend(loc="upper right", fontsize="small")
    mel.set(xlabel="seconds")
    figure.colorbar(draw_mel(mel, audio.mean(0), sample_rate), ax=mel, label="dB below the loudest", pad=0.01)
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=120)
    return path


def draw_mel(axes: Any, audio: Tensor, sample_rate: int, *, ticks: Sequence[int] = TICKS) -> Any:
    """The mel spectrogram of ``[samples]`` over seconds, on matplotlib's ``axes``; its image, for a colour bar.

    Args:
        ticks: Hz; those there is room for.
    """
    shown = axes.imshow(
        mel_spectrogram(audio, sample_rate).numpy(),
        origin="lower",
        aspect="auto",
        extent=(0.0, audio.shape[0] / sample_rate, 0.0, MEL_BINS),
        cmap="magma",
        interpolation="nearest",
    )
    there, top = [f for f in ticks if f < sample_rate / 2], _mel(sample_rate / 2)
    axes.set_yticks([MEL_BINS * _mel(f) / top for f in there], [f"{f:g}" for f in there])
    axes.set(ylabel="Hz (mel)")
    return shown


def mel_spectrogram(audio: Tensor, sample_rate: int) -> Tensor:
    """dB below the loudest, ``[MEL_BINS, frames]``, of ``[samples]``: power summed in triangles even in mel."""
    spectrum = torch.stft(
        audio, N_FFT, HOP, window=torch.hann_window(N_FFT), center=True, pad_mode="constant", return_complex=True
    )
    power = _mel_filters(sample_rate) @ spectrum.abs().square()
    decibels = 10 * power.clamp(min=1e-10).log10()
    return (decibels - decibels.max()).clamp(min=-RANGE_DB)


def _mel_filters(sample_rate: int) -> Tensor:
    """``[MEL_BINS, N_FFT / 2 + 1]``: triangles of height 1, their corners even on the HTK mel scale."""
    corners = torch.linspace(0, _mel(sample_rate / 2), MEL_BINS + 2, dtype=torch.float64)
    low, middle, high = (700 * (10 ** (corners / 2595) - 1)).unfold(0, 3, 1).T.unsqueeze(2)
    hertz = torch.linspace(0, sample_rate / 2, N_FFT // 2 + 1, dtype=torch.float64)
    rising, falling = (hertz - low) / (middle - low), (high - hertz) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0).float()


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _outline(channel: Tensor, seconds: float, columns: int = 2000) -> tuple[Tensor, Tensor, Tensor]:
    """Times, lowest and highest value of at most ``columns`` stretches: what a plot of every sample would show."""
    size = -(-channel.shape[0] // columns)
    padded = torch.nn.functional.pad(channel, (0, -channel.shape[0] % size), value=float(channel[-1]))
    low, high = padded.view(-1, size).aminmax(dim=1)
    return torch.linspace(0, seconds, low.shape[0]), low, high
