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
from presto_models.ditto.features import Chroma, Loudness
from presto_models.ditto.melody import reference_classes
from presto_models.ditto.notes import REST

CONTROLS = ("loudness", "melody")
PITCH_CLASSES = 12
WIDTH = 1 + PITCH_CLASSES
KIND, FILE, VERSION = "control-signals", "control-signals.safetensors", 1


def signals(audio: Tensor, sample_rate: int, latents: int) -> Tensor:
    """Loudness and melody of audio ``[samples]`` at the rate of its latents, ``[latents, 13]``, fp32.

    Column 0 is smoothed dB as the control Intensity hears it.  Columns 1 to 12 are the share of a latent's frames in
    which each pitch class, C to B, is what the control Melody would ask for of this audio; all 0 where it would ask for
    nothing: in silence and where no pitch is clear.
    """
    audio = audio[None]
    loudness = Loudness(audio.shape[1], sample_rate, device=audio.device)(audio)[0]
    chroma = Chroma(audio.shape[1], sample_rate, device=audio.device)
    classes = reference_classes(audio, chroma)
    melody = F.one_hot(classes.clamp(min=0), PITCH_CLASSES) * (classes != REST)[:, None]
    return torch.cat((at_latents(loudness[:, None], latents), at_latents(melody.float(), latents)), 1)


def at_latents(frames: Tensor, latents: int) -> Tensor:
    """A feature ``[frames, k]`` of a whole piece, averaged over the part each of its latents stands for."""
    return F.adaptive_avg_pool1d(frames.T[None], latents)[0].T


@torch.no_grad()
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
