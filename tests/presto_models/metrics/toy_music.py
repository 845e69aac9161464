"""Music and ears that need no network: a note near one of two frequencies, and the levels of eight bands."""

import json

import numpy as np
import torch

from presto_models.data.audio_files import write_audio
from presto_models.metrics.musicnn import MusicNNOutput

RATE = 8000
HERTZ = {"low": 200.0, "high": 900.0}


def tone(kind, seed, samples=int(1.2 * RATE)):
    """A note near the kind's frequency, in a little noise."""
    rng = np.random.default_rng(seed)
    hertz = HERTZ[kind] * rng.uniform(0.9, 1.1)
    wave = np.sin(2 * np.pi * hertz * np.arange(samples) / RATE) + 0.3 * rng.standard_normal(samples)
    return torch.from_numpy(0.2 * wave).float()


class Bands:
    """Ears without a network: the levels of eight bands of each half second, in dB."""

    tag_names = tuple(f"band {index}" for index in range(8))

    def __init__(self):
        self.heard = 0

    def analyse(self, audio, sample_rate):
        self.heard += 1
        halves = audio.unfold(1, sample_rate // 2, sample_rate // 2)  # [1, 2, T]
        power = torch.fft.rfft(halves).abs().square()[..., 1:1001].unflatten(-1, (8, 125)).mean(-1)
        levels = torch.log10(power + 1e-3)
        return MusicNNOutput(levels.sigmoid(), levels, levels)


def write_music(root, seconds, **splits):
    """A folder of ``splits`` name to how many files, each a piece of its own, low and high notes in turn."""
    for number, (split, count) in enumerate(splits.items()):
        for index in range(count):
            kind = ("low", "high")[index % 2]
            path = root / split / f"{split}-{index}.wav"
            write_audio(path, tone(kind, [number, index], int(seconds * RATE))[None], RATE)
            described = {"captions": [f"{kind} note {index}"], "tags": {"pitch": kind}, "piece": f"{split}-{index}"}
            path.with_suffix(".json").write_text(json.dumps(described))
    return root
