"""What every command that writes music shares: where it may write, and what goes there."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def audio_path(path: Path, *, name: str = "out") -> Path:
    """``path``, where an audio file of its kind can be made here; ValueError or ImportError otherwise."""
    from presto_models.data.audio_files import SUFFIXES

    try:
        import soundfile  # noqa: F401
    except ImportError as error:
        raise ImportError("audio files need soundfile: pip install 'presto-kernels[models]'") from error
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{name} must end in {', '.join(SUFFIXES)}; got {str(path)!r}")
    return path


def numbered(path: Path, count: int) -> list[Path]:
    """``path``, or name-1.wav, name-2.wav, ... where there are several."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(count)]


def check_writable(path: Path) -> None:
    """Whether a file can be made there, found out before the work and not after it."""
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {path}: {error.strerror}") from error


def check_finite(waveform: Tensor) -> None:
    """ValueError for music with NaN or infinity in it."""
    if not waveform.isfinite().all():
        raise ValueError("the model gave NaN or infinite samples: nothing was written; try --dtype fp32")


def within_full_scale(audio: Tensor, path: Path) -> Tensor:
    """``audio``, or quieter so that its peak is 1, which is said of ``path``."""
    peak = float(audio.abs().max())
    if peak <= 1:
        return audio
    print(f"note: {path.name} was made quieter to fit, its peak was {peak:.2f}", file=sys.stderr)
    return audio / peak
