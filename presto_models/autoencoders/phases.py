"""Phases of a spectrogram: how they advance from frame to frame, and their sum along the partials.

Frames are a quarter of their length apart.  Between two of them the phase of a tone of frequency f grows by
2 pi f hop / rate: pi/2 k for a tone in the middle of bin k, and up to pi/4 more or less within the bin.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NOISE_FRAMES = 256  # random phases repeat after so many frames, three seconds
NEIGHBOURS = 2  # a Hann window's main lobe is four bins wide, so a peak owns two on either side
CERTAIN, UNCERTAIN = 0.7, 0.3  # lengths of a predicted advance: above the first it is taken as it is, below it is noise


def noise_tile(bins: int) -> Tensor:
    """Standard normal ``[NOISE_FRAMES, bins]``, the same in every process."""
    return torch.randn(NOISE_FRAMES, bins, generator=torch.Generator().manual_seed(0))


def phase_advance(spectrum: Tensor) -> Tensor:
    """(cos, sin) ``[B, frames, bins, 2]`` of arg S[t] - arg S[t-1] - pi/2 k; 0 at the first frame.  S is complex."""
    turns = spectrum[:, 1:] * spectrum[:, :-1].conj() * _quarter_turns(spectrum.shape[-1], spectrum.device).conj()
    unit = torch.view_as_real(turns / turns.abs().clamp_min(1e-12))
    first = torch.tensor((1.0, 0.0), device=spectrum.device).expand(unit.shape[0], 1, unit.shape[2], 2)
    return torch.cat((first, unit), dim=1)


def accumulate_phases(
    magnitude: Tensor, advance: Tensor, noise: Tensor, *, first_frame: int = 0, before: Tensor | None = None
) -> Tensor:
    """Phases ``[B, frames, bins]`` whose advances are those given, in step within each partial.

        phase[t, k] = phase[t-1, p] + pi/2 p + advance[t, p]  (+ pi (k - p)),   p: the strongest bin within two of k

    A bin takes its phase from the peak it belongs to (Laroche & Dolson 1999, identity phase locking): the bins of a
    partial then never drift apart, and a new note starts in step.  pi (k - p) is the phase between neighbouring bins of
    a symmetric window counted from its first sample.

    Args:
        magnitude: ``[B, frames, bins]``.
        advance: ``[B, frames, tonal bins, 2]``, see :class:`presto_models.autoencoders.spectral.Frames`.  Where it is
            short, and above the tonal bins, normal noise is added: sqrt(-2 ln length) is the spread of a wrapped normal
            whose mean vector has that length.
        noise: standard normal ``[NOISE_FRAMES, bins]``, repeated.
        first_frame: number of the first frame in the whole, for the noise.
        before: phases of the frame before the first, ``[B, bins]``.
    """
    batch, frames, bins = magnitude.shape
    tonal = advance.shape[2]
    length = advance.square().sum(-1).add(1e-9).sqrt()
    spread = (-2 * length.clamp(0.05, 1.0).log()).sqrt() * ((CERTAIN - length) / (CERTAIN - UNCERTAIN)).clamp(0, 1)
    turn = F.pad(torch.atan2(advance[..., 1], advance[..., 0]), (0, bins - tonal))
    spread = F.pad(spread.detach(), (0, bins - tonal), value=math.pi)
    index = torch.arange(first_frame, first_frame + frames, device=magnitude.device) % noise.shape[0]
    turn = turn + spread * noise[index].float()
    turn = turn + (math.pi / 2) * (torch.arange(bins, device=magnitude.device) % 4)

    with torch.no_grad():
        flat = magnitude.reshape(batch * frames, 1, bins)
        _, found = F.max_pool1d(flat, 2 * NEIGHBOURS + 1, 1, NEIGHBOURS, return_indices=True)
        peak = found.view(batch, frames, bins)
    step = turn.gather(2, peak)
    # The (-1)^k of each bin is left out of the sums and put back at the end.
    sign = (torch.arange(bins, device=peak.device) % 2) * math.pi
    phase = magnitude.new_zeros(batch, bins) if before is None else before - sign
    phases = []
    # unbind, not an index a frame: the gradient of an index is a tensor of all frames, once for each of them.
    for owner, advanced in zip(peak.unbind(1), step.unbind(1), strict=True):
        phase = phase.gather(1, owner) + advanced
        phases.append(phase)
    return torch.stack(phases, dim=1) + sign


def overlap_add(frames: Tensor, tail: Tensor | None = None) -> Tensor:
    """Frames ``[B, F, n]`` a quarter of their length apart, summed: ``[B, (F + 3) n / 4]``.

    ``tail``: what earlier frames left behind, ``[B, 3 n / 4]``, added at the front.
    """
    batch, count, size = frames.shape
    quarters = frames.view(batch, count, 4, size // 4)
    total = frames.new_zeros(batch, count + 3, size // 4)
    if tail is not None:
        total[:, :3] += tail.view(batch, 3, size // 4)
    for i in range(4):
        total[:, i : i + count] += quarters[:, :, i]
    return total.flatten(1)


def _quarter_turns(bins: int, device: torch.device) -> Tensor:
    """exp(i pi/2 k), complex ``[bins]``."""
    return torch.polar(torch.ones(bins, device=device), (torch.arange(bins, device=device) % 4) * (math.pi / 2))
