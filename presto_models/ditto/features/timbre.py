"""What music sounds like apart from loudness and pitch, and where it sounds like that again."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from presto_models.ditto.features.savgol import SavitzkyGolay, odd_window
from presto_models.ditto.features.spectrum import Spectrum
from presto_models.metrics.mel import mel_filters

BANDS, COEFFICIENTS = 128, 20  # librosa's
# The paper's window and order could not be read: ours.  Of 29 pieces spliced as ABBA from two recordings each, the
# matrix is 0.28 (mean square) from ABBA's and 0.79 from ABAB's; that of music as it is, 0.71 from ABBA's.  Windows of
# half a second, and of one or two at order 2, tell ABBA from ABAB about as well.
SMOOTHING = 1.0  # seconds
ORDER = 1
ROWS = 10  # a second, about, of the matrix that is kept: smoothed as it is, more would say the same


class Timbre:
    """``timbre(power)``: ``[B, frames, 19]``, MFCC without coefficient 0.

    dct(10 log10 mel power), as ``librosa.feature.mfcc``: 128 mel bands, at least 1e-10 and at most 80 dB below the
    loudest of the sample, 20 coefficients of the orthonormal DCT-II of which the first, the level, is left out
    (DITTO, 2401.12179, section 4).
    """

    def __init__(
        self,
        samples: int,
        sample_rate: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.spectrum = Spectrum(samples, sample_rate, device=device, dtype=dtype)
        self.filters = mel_filters(sample_rate, self.spectrum.n_fft, BANDS).to(device=device, dtype=dtype)
        band = torch.arange(BANDS, dtype=torch.float64)[:, None] + 0.5
        cosines = torch.cos(math.pi / BANDS * band * torch.arange(1, COEFFICIENTS))
        self.dct = (math.sqrt(2 / BANDS) * cosines).to(device=device, dtype=dtype)

    def __call__(self, power: Tensor) -> Tensor:
        level = 10 * (power @ self.filters).clamp_min(1e-10).log10()
        return torch.maximum(level, level.amax((1, 2), keepdim=True) - 80) @ self.dct


class SelfSimilarity:
    """``similarity(timbre)``: ``[B, frames, d]`` to ``[B, rows, rows]``, near 1 where two moments sound alike.

        savgol2d * T T',        T: each coefficient less its mean over time, then each frame to length 1

    so that 1 is as alike as can be, and -1 as different.  The paper has "normalised over time" and no more; this
    reading is our choice.  With each coefficient's deviation brought to 1 as well, those that do not change are noise
    as loud as the others, and the 29 pieces above are 0.42 from ABBA's matrix and 0.66 from ABAB's.

    A 2-D Savitzky-Golay filter puts at every place the polynomial of total degree n fitted to the square around it; at
    the edges that of the outermost square.  With S_k the 1-D filter of order k, S_-1 = 0, that is exactly

        sum over k of (S_k - S_{k-1}) M S_{n-k}',    and for M = T T'  ((S_k - S_{k-1}) T) (S_{n-k} T)'

    so only T is ever smoothed, and only the rows that are kept are multiplied: every ``every``-th, about ten a second.
    """

    def __init__(
        self,
        frames: int,
        frames_per_second: float,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        window = odd_window(SMOOTHING, frames_per_second)
        self.every = max(1, round(frames_per_second / ROWS))
        self.rows = -(-frames // self.every)
        self.filters = [SavitzkyGolay(frames, window, k, device=device, dtype=dtype) for k in range(ORDER + 1)]

    def __call__(self, timbre: Tensor) -> Tensor:
        centred = timbre - timbre.mean(1, keepdim=True)
        unit = centred / (centred.square().sum(-1, keepdim=True) + 1e-8).sqrt()
        smooth = [smoothed(unit.mT)[..., :: self.every] for smoothed in self.filters]
        steps = [smooth[0], *(b - a for a, b in pairwise(smooth))]
        return torch.cat(steps, 1).mT @ torch.cat(smooth[::-1], 1)
