"""Audio files, read and written so that nothing wrong passes silently and no half file is left."""

from __future__ import annotations

import functools
import io
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from presto_models.files import written_beside

SUFFIXES = (".wav", ".flac", ".ogg")
_logger = logging.getLogger(__name__)


def read_audio(
    path: str | Path, *, sample_rate: int, channels: int, start: float = 0.0, seconds: float | None = None
) -> Tensor:
    """`[channels, samples]` fp32 of an audio file, resampled and mixed down or doubled where it differs (said once).

    Only `seconds` from `start` on are read; less comes back where the file ends earlier. Several channels become one by
    their mean, one becomes several by copying. Raises FileNotFoundError where there is no file, and ValueError for a
    file that is empty, cut short or no audio, for a start past its end, and for channels that cannot be mapped.
    """
    soundfile = _soundfile()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {path}")
    if start < 0 or (seconds is not None and seconds <= 0):
        raise ValueError(f"start, seconds: {start}, {seconds}; start must not be negative and seconds must be above 0")
    try:
        with soundfile.SoundFile(path) as file:
            rate, frames = file.samplerate, file.frames
            if frames == 0:
                raise ValueError(f"path: {path} holds no audio")
            first = round(start * rate)
            if first >= frames:
                raise ValueError(f"start: {start} s is past the end of {path} ({frames / rate:.2f} s)")
            # A file's own rate may not divide the crop: one frame more, cut off again below.
            wanted = frames - first if seconds is None else min(frames - first, math.ceil(seconds * rate) + 1)
            file.seek(first)
            read = file.read(wanted, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"path: cannot read {path} as audio: {error}") from error
    if len(read) < wanted:
        raise ValueError(f"path: {path} is cut short: {first + len(read)} of {frames} frames are there")
    waveform = _with_channels(torch.from_numpy(np.ascontiguousarray(read.T)), channels)
    if rate != sample_rate:
        _say(f"resampling audio from {rate} to {sample_rate} Hz")
        waveform = resampled(waveform, rate, sample_rate)
    return waveform if seconds is None else waveform[:, : round(seconds * sample_rate)]


def write_audio(path: str | Path, waveform: Tensor, sample_rate: int) -> None:
    """Writes `[channels, samples]` between -1 and 1 as 16-bit WAV or FLAC or as Ogg Vorbis, by the suffix of `path`.

    Samples outside are clipped, which is said. The file is written beside and renamed, so that there is never half a
    one: OSError where the disk is full. Raises ValueError for another suffix or shape, no samples, NaN or infinity.
    """
    soundfile = _soundfile()
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"path: {path.name} must end in {', '.join(SUFFIXES)}")
    if waveform.ndim != 2 or waveform.shape[1] == 0 or not 1 <= waveform.shape[0] <= 8:
        raise ValueError(f"waveform: expected [channels, samples], got {list(waveform.shape)}")
    samples = waveform.detach().to("cpu", torch.float32)
    if not torch.isfinite(samples).all():
        raise ValueError("waveform: has NaN or infinite samples")
    if (peak := float(samples.abs().max())) > 1:
        _logger.warning("%s: clipped, its peak was %.2f", path.name, peak)
        samples = samples.clamp(-1, 1)
    # Encoded in memory first: libsndfile does not report a full disk, Python's own writing does.
    encoded = io.BytesIO()
    kind = path.suffix[1:].upper()
    subtype = "VORBIS" if kind == "OGG" else "PCM_16"
    with soundfile.SoundFile(encoded, "w", sample_rate, len(samples), subtype=subtype, format=kind) as file:
        for block in samples.T.split(sample_rate):  # libvorbis overflows its stack on a long write
            file.write(block.contiguous().numpy())
    with written_beside(path) as beside:
        beside.write_bytes(encoded.getbuffer())


def _with_channels(waveform: Tensor, channels: int) -> Tensor:
    if len(waveform) == channels:
        return waveform
    if channels == 1:
        _say(f"mixing {len(waveform)} channels down to mono")
        return waveform.mean(0, keepdim=True)
    if len(waveform) == 1:
        _say(f"copying mono to {channels} channels")
        return waveform.repeat(channels, 1)
    raise ValueError(f"channels: cannot make {channels} of {len(waveform)}; only to or from mono")


def resampled(waveform: Tensor, rate: int, to: int) -> Tensor:
    """`[channels, samples]` at another rate, by soxr where it is installed, else by scipy."""
    try:
        import soxr
    except ImportError:
        from scipy.signal import resample_poly

        common = math.gcd(rate, to)
        return torch.from_numpy(
            resample_poly(waveform.numpy(), to // common, rate // common, axis=1).astype(np.float32)
        )
    return torch.from_numpy(np.ascontiguousarray(soxr.resample(waveform.numpy().T, rate, to).T))


@functools.cache
def _say(message: str) -> None:
    _logger.warning("%s", message)


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("audio files need soundfile: pip install 'presto-kernels[models]'") from error
    return soundfile
