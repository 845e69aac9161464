"""Generated clips on disk: an evaluation that is stopped goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from presto_models.components import component_files
from presto_models.data.audio_files import write_audio
from presto_models.files import written_beside
from presto_models.metrics.provenance import file_sha256

# Prompts and a seed to waveforms [prompts, channels, samples] and their sample rate in Hz.
Generate = Callable[[list[str], int], tuple[Tensor, int]]


def generate_clips(
    generate: Generate,
    prompts: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any],
    seed: int,
    batch: int,
) -> Iterator[Path]:
    """One 16-bit wav a prompt, ``0000.wav`` and so on; yields each path as soon as it is there.

    A clip beyond full scale is made quieter to fit, as `generate` does: clipping would be heard as noise.

    A batch of prompts is made together, from seed + the number of its first one.  A batch that is on disk already,
    made with the same ``settings``, prompts and seed, is not made again; what was made otherwise is replaced.

    Args:
        settings: whatever else decides the sound: the checkpoint's hash, seconds, steps, guidance.  Plain JSON.

    Raises:
        ValueError: the waveforms are not one a prompt, or not finite.  OSError: they cannot be written.
    """
    folder = Path(folder)
    for first in range(0, len(prompts), batch):
        some = list(prompts[first : first + batch])
        paths = [folder / f"{first + index:04d}.wav" for index in range(len(some))]
        made_with = {"prompts": some, "seed": seed + first, **settings}
        note = folder / f"{first:04d}.json"  # written last: it vouches for the whole batch
        if not (all(path.exists() for path in paths) and _read_json(note) == made_with):
            note.unlink(missing_ok=True)
            waveforms, sample_rate = generate(some, seed + first)
            if waveforms.dim() != 3 or len(waveforms) != len(some):
                raise ValueError(f"generate must give [{len(some)}, channels, samples], got {tuple(waveforms.shape)}")
            if not torch.isfinite(waveforms).all():
                raise ValueError(f"generate gave values that are not finite for {some}")
            for path, waveform in zip(paths, waveforms, strict=True):
                write_audio(path, waveform / waveform.abs().max().clamp_min(1), sample_rate)
            with written_beside(note) as beside:
                beside.write_text(json.dumps(made_with))
        yield from paths


def weights_sha256(folder: Path) -> dict[str, str]:
    """What tells one checkpoint from another: the hash of each file it is made of, its base's too, by name."""
    return {path.name: file_sha256(path) for path in component_files(folder)}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
