"""What an adaptor is told about the music, at the rate of the latents, and the file that keeps it for training."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_models.autoencoders import Autoencoder
from presto_models.checkpoint import load_weights, save_weights
from presto_models.data.latents import LatentDataset

CONTROLS = ("loudness", "melody")
PITCH_CLASSES = 12
WIDTH = 1 + PITCH_CLASSES
KIND, FILE, VERSION = "control-signals", "control-signals.safetensors", 1
FLOOR_DB = -80.0
SMOOTHING_SECONDS = 1.0
LOWEST_HZ = 261.6  # middle C: below it is accompaniment
N_FFT = 2048
PER_LATENT = 2  # chroma frames that stand for a latent, averaged


def signals(audio: Tensor, sample_rate: int, latents: int) -> Tensor:
    """Loudness and melody of audio at the rate of its latents, ``[latents, 13]``, fp32.

    Args:
        audio: ``[samples]``, fp32; latent i stands for an equal part of it, the i-th.

    Column 0 is 20 log10 of the RMS of the latent's part, not below -80 dB, smoothed over a second (Savitzky-Golay of
    order 1, whose value in the middle of its window is the mean).  Columns 1 to 12 are one-hot: the strongest pitch
    class above middle C, of C, C sharp ... B; all 0 in silence.
    """
    hop = -(-audio.shape[0] // latents)
    padded = F.pad(audio, (0, latents * hop - audio.shape[0]))
    power = padded.view(latents, hop).square().mean(1)
    decibels = 10 * power.clamp(min=10 ** (FLOOR_DB / 10)).log10()
    reach = round(SMOOTHING_SECONDS * sample_rate / hop / 2)
    smooth = F.avg_pool1d(decibels[None, None], 2 * reach + 1, 1, reach, count_include_pad=False)[0, 0]
    chroma = _chroma(padded, sample_rate, latents * PER_LATENT).view(latents, PER_LATENT, PITCH_CLASSES).sum(1)
    melody = F.one_hot(chroma.argmax(1), PITCH_CLASSES) * (decibels > FLOOR_DB)[:, None]
    return torch.cat((smooth[:, None], melody.float()), 1)


def _chroma(audio: Tensor, sample_rate: int, frames: int) -> Tensor:
    """Power by pitch class above middle C in ``frames`` equal parts, ``[frames, 12]``, each frame summing to 1."""
    hop = audio.shape[0] // frames
    margin = (N_FFT - hop) // 2
    windows = F.pad(audio, (margin, N_FFT)).unfold(0, N_FFT, hop)[:frames]
    power = torch.fft.rfft(windows * torch.hann_window(N_FFT)).abs().square()
    hertz = torch.arange(1, N_FFT // 2 + 1) * sample_rate / N_FFT
    heard = hertz >= LOWEST_HZ
    classes = (12 * torch.log2(hertz[heard] / 440) + 9).round().long() % PITCH_CLASSES
    chroma = power[:, 1:][:, heard] @ F.one_hot(classes, PITCH_CLASSES).float()
    return chroma / chroma.sum(1, keepdim=True).clamp(min=1e-12)


@torch.inference_mode()
def clip_signals(datasets: Sequence[LatentDataset], autoencoder: Autoencoder) -> dict[str, Tensor]:
    """Clip to its signals ``[N, 13]``, fp16, of every clip of these datasets, which are of one folder.

    They are those of the decoded latents: what the controls will hear, and nothing can be out of step.  The first time
    every clip is decoded, on the CPU; then they are read from ``control-signals.safetensors`` beside the latents, which
    is whole or not there, and is made anew where the latents are others.
    """
    from rich.progress import track

    file = datasets[0].root / FILE
    made_of = {"version": VERSION, "mean": datasets[0].index["mean"]}
    wanted = {clip["id"]: (dataset, number) for dataset in datasets for number, clip in enumerate(dataset.clips)}
    if file.is_file():
        known, config = load_weights(file, kind=KIND)
        if config == made_of and wanted.keys() <= known.keys():
            return known
    made = {}
    for name in track(wanted, "control signals", transient=True, disable=not sys.stdout.isatty()):
        dataset, number = wanted[name]
        latents = dataset.whole(number)
        audio = autoencoder.decode(latents[None])[0].mean(0)
        made[name] = signals(audio, autoencoder.sample_rate, len(latents)).half()
    save_weights(file, made, kind=KIND, config=made_of)
    return made
