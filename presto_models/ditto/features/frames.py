"""Frames of audio, centred on multiples of a hop as librosa centres them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def frame_length(sample_rate: int) -> int:
    """Samples of a frame: 2048 at 44.1 kHz [P], at other rates the power of two nearest to as long in seconds."""
    return 2 ** round(math.log2(2048 * sample_rate / 44100))


def frame_count(samples: int, hop: int) -> int:
    """Frames there are of so many samples: one is centred on sample 0, and one on every ``hop``-th after it."""
    return 1 + samples // hop


def frame_times(frames: int, hop: int, sample_rate: int) -> Tensor:
    """Seconds of the middle of each frame, ``[frames]`` float64."""
    return torch.arange(frames, dtype=torch.float64) * hop / sample_rate


def in_blocks(audio: Tensor, frame: int, hop: int) -> Tensor:
    """Audio ``[B, T]`` with half a frame of silence at both ends, in blocks ``[B, blocks, hop]``.

    Frame t is blocks t to t + frame / hop - 1, where ``hop`` divides half a frame.  What is left over is in no frame.
    """
    padded = F.pad(audio, (frame // 2, frame // 2))
    blocks = padded.shape[-1] // hop
    return padded[:, : blocks * hop].unflatten(1, (blocks, hop))
