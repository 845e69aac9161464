"""Mono to stereo: the side signal, predicted from the mid in the spectral domain.

With M = (L + R) / 2 the mid (the mono signal given) and S = (L - R) / 2 the side:

    X(t, f)  = STFT of M
    S(t, f)  = sum_k  g_k(t, band of f) X(t - d_k, f)      d_k: ``taps``, delays in frames, 0 the signal itself
    g        = max_gain z / sqrt(1 + sum_k |z_k|^2),       z = network(log band power of X), complex
    L, R     = M + S, M - S

so the mid is preserved whatever the weights are: (L + R) / 2 = M within rounding.  One tap of real gain is panning
(1 is hard left, -1 hard right), the phase and delayed copies are what width and room are made of.  The root sum of
squares of a band's gains stays below ``max_gain``, hence by Cauchy-Schwarz

    |S(t, f)|^2 <= max_gain^2 sum_k |X(t - d_k, f)|^2:

the side cannot blow up.  The last layer starts at zero: a fresh module is exactly dual mono.

The role is that of the mono-to-stereo module in Presto (arXiv 2410.05167), whose architecture could not be read; this
one is ours.  Blocks are ConvNeXt (arXiv 2201.03545) along time, at frame rate.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from presto_models.checkpoint import CheckpointError, load_into, load_weights, save_weights

FLOOR = 1e-9  # added to the power of a band: 90 dB below a sine of full scale


@dataclass(frozen=True)
class StereoConfig:
    """Sizes of a :class:`MonoToStereo`.

    Args:
        sample_rate: Hz, of the audio it was made for.
        n_fft: samples in a frame, a multiple of 4; frames are Hann-windowed and ``n_fft / 4`` apart.
        fine_bands: so many of the lowest bins are a band each.
        coarse_bands: so many bands, of equal width in log frequency where bins allow it, share the bins above.
        taps: delays in frames, increasing, the first 0.
        num_blocks, dim, mlp_dim, kernel_size: depth, width, inner width and frames (odd) of the ConvNeXt blocks.
        max_gain: bound of the gains of one band; 1 is hard panning, 2 lets the side be 6 dB above the mid.
    """

    sample_rate: int = 44100
    n_fft: int = 4096
    fine_bands: int = 384
    coarse_bands: int = 96
    taps: tuple[int, ...] = (0,)
    num_blocks: int = 4
    dim: int = 256
    mlp_dim: int = 512
    kernel_size: int = 15
    max_gain: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "taps", tuple(self.taps))  # a list where it comes from JSON
        for name in ("sample_rate", "fine_bands", "coarse_bands", "num_blocks", "dim", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_fft < 16 or self.n_fft % 4:
            raise ValueError(f"n_fft must be a multiple of 4 and at least 16, got {self.n_fft}")
        if self.num_bands > self.num_bins:
            raise ValueError(
                f"fine_bands + coarse_bands must be at most the {self.num_bins} bins of n_fft {self.n_fft}, "
                f"got {self.fine_bands} + {self.coarse_bands}"
            )
        if not self.taps or self.taps[0] != 0 or self.taps != tuple(sorted(set(self.taps))):
            raise ValueError(f"taps must be increasing delays in frames, the first 0, got {self.taps}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 1, got {self.kernel_size}")
        if not self.max_gain > 0:
            raise ValueError(f"max_gain must be positive, got {self.max_gain}")

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.n_fft // 4

    @property
    def num_bins(self) -> int:
        """Frequencies of a frame."""
        return self.n_fft // 2 + 1

    @property
    def num_bands(self) -> int:
        """Bands that the network sees, and gives gains for."""
        return self.fine_bands + self.coarse_bands

    @property
    def coarse_edges(self) -> list[int]:
        """First bin of each coarse band, and ``num_bins``."""
        edges = [self.fine_bands]
        for left in range(self.coarse_bands, 0, -1):
            width = round(edges[-1] * ((self.num_bins / edges[-1]) ** (1 / left) - 1))
            edges.append(edges[-1] + max(1, min(width, self.num_bins - edges[-1] - (left - 1))))
        return edges

    @classmethod
    def named(cls, name: str) -> StereoConfig:
        """``"presto-tiny"``: the trained one.  ``"presto-32s"``: paper scale.  ``"tiny"``: for tests.

        The paper's module takes 205 ms for 32 s of audio; its architecture could not be read, so ``presto-32s`` is no
        copy of it but a stand-in: 107 M weights and 0.59 TFLOP for 32 s, four tenths of a forward of the paper-scale
        DiT.
        """
        if name not in _NAMED:
            raise ValueError(f"name must be one of {', '.join(_NAMED)}; got {name!r}")
        return cls(**_NAMED[name])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StereoConfig:
        """The config :meth:`to_dict` wrote."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"taps": list(self.taps)}


_NAMED: dict[str, dict[str, Any]] = {
    "presto-tiny": {},
    "presto-32s": {
        "n_fft": 2048,
        "fine_bands": 512,
        "coarse_bands": 128,
        "taps": (0, 1, 2, 4),
        "num_blocks": 12,
        "dim": 1024,
        "mlp_dim": 4096,
    },
    "tiny": {"n_fft": 256, "fine_bands": 24, "coarse_bands": 12, "num_blocks": 2, "dim": 32, "mlp_dim": 64},
}


class MonoToStereo(nn.Module):
    """Mono audio to stereo with the same down-mix.  The formulas are the file's own docstring.

    A frame's gains depend on ``num_blocks (kernel_size - 1) / 2`` frames to either side.  Weights may be bf16 or fp16:
    then the network runs in that, while spectra, gains and audio stay fp32.  Nothing in it asks the device a question,
    so a CUDA graph can hold it.
    """

    def __init__(self, config: StereoConfig) -> None:
        super().__init__()
        self.config = config
        self.input = nn.Linear(config.num_bands, config.dim)
        self.input_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.num_blocks)])
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.head = nn.Linear(config.dim, len(config.taps) * 2 * config.num_bands)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        edges = torch.tensor(config.coarse_edges)
        band_of_bin = torch.searchsorted(edges, torch.arange(config.num_bins), right=True) - 1 + config.fine_bands
        band_of_bin[: config.fine_bands] = torch.arange(config.fine_bands)
        members = torch.arange(config.fine_bands, config.num_bands)[:, None] == band_of_bin[config.fine_bands :]
        self.band_of_bin: Tensor
        self.members: Tensor  # [coarse_bands, bins above the fine ones], 1 where a bin is in a band
        self.register_buffer("band_of_bin", band_of_bin, persistent=False)
        self.register_buffer("members", members.float(), persistent=False)

    def forward(self, mid: Tensor) -> Tensor:
        """Audio ``[B, 1, T]``, T >= 1, to ``[B, 2, T]``, left and right.

        In fp32 (fp64 for an fp64 ``mid``).  Left and right may pass 1 where the mid is near it.

        Raises:
            TypeError: ``mid`` is not floating point.  ValueError: it is not ``[B, 1, T]``.
        """
        if not mid.is_floating_point():
            raise TypeError(f"mid must be floating point, got {mid.dtype}")
        if mid.dim() != 3 or mid.shape[1] != 1 or mid.shape[2] < 1:
            raise ValueError(f"mid must be mono audio [B, 1, T] with T >= 1, got {tuple(mid.shape)}")
        mid = mid.to(torch.promote_types(mid.dtype, torch.float32))
        spectrum = stft(mid[:, 0], self.config.n_fft)
        power = (spectrum.real.square() + spectrum.imag.square()) * (4 / self.config.n_fft) ** 2
        gains = self.gains(self.band_sums(power)).unbind(-1)
        taps = zip(gains, self.config.taps, strict=True)
        made = torch.stack([gain[..., self.band_of_bin] * delayed(spectrum, delay) for gain, delay in taps]).sum(0)
        side = istft(made, self.config.n_fft, mid.shape[-1])[:, None]
        return torch.cat([mid + side, mid - side], dim=1)

    def gains(self, power: Tensor) -> Tensor:
        """g, complex ``[B, frames, bands, taps]``, for X's power by band ``[B, frames, bands]``.

        A sine of full scale has power 1.
        """
        config = self.config
        # about standard over rendered music: with a mean far from zero the norm would leave little but that mean
        seen = ((power + FLOOR).log() + 16) / 4
        hidden = self.input_norm(self.input(seen.to(self.head.weight.dtype)))
        for block in self.blocks:
            hidden = block(hidden)
        z = self.head(self.norm(hidden)).to(power.dtype).unflatten(-1, (config.num_bands, len(config.taps), 2))
        z = z * (config.max_gain * (1 + z.square().sum((-2, -1), keepdim=True)).rsqrt())
        return torch.view_as_complex(z)

    def band_sums(self, values: Tensor) -> Tensor:
        """Real ``[..., bins]``, summed over the bins of each band: ``[..., bands]``."""
        fine = self.config.fine_bands
        return torch.cat([values[..., :fine], values[..., fine:] @ self.members.to(values.dtype).T], dim=-1)


class _Block(nn.Module):
    """x + W2 gelu(W1 norm(depthwise(x))), x ``[B, frames, dim]``."""

    def __init__(self, config: StereoConfig) -> None:
        super().__init__()
        size = config.kernel_size
        self.depthwise = nn.Conv1d(config.dim, config.dim, size, padding=size // 2, groups=config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.expand = nn.Linear(config.dim, config.mlp_dim)
        self.project = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return x + self.project(F.gelu(self.expand(self.norm(mixed)), approximate="tanh"))


def save_stereo(module: MonoToStereo, path: str | os.PathLike[str]) -> Path:
    """Write the module and its config as safetensors; the weights in the dtype they have."""
    return save_weights(path, module.state_dict(), kind="stereo", config=module.config.to_dict())


def load_stereo(path: str | os.PathLike[str]) -> MonoToStereo:
    """The module :func:`save_stereo` wrote, in fp32 and ready to run.

    Raises:
        FileNotFoundError: no such file.  CheckpointError: cut short, foreign, or weights and config do not fit.
    """
    weights, config = load_weights(path, kind="stereo")
    try:
        module = MonoToStereo(StereoConfig.from_dict(config))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has a config that makes no stereo module: {error}") from error
    load_into(module, weights, source=path)
    return module.eval().requires_grad_(False)


def stft(audio: Tensor, n_fft: int) -> Tensor:
    """``[B, T]`` to ``[B, frames, n_fft / 2 + 1]``, complex; silence around it so that four frames hold each sample."""
    hop = n_fft // 4
    audio = F.pad(audio, (n_fft - hop, n_fft - hop + -audio.shape[-1] % hop))
    window = torch.hann_window(n_fft, dtype=audio.dtype, device=audio.device)
    return torch.fft.rfft(audio.unfold(-1, n_fft, hop) * window)


def istft(spectrum: Tensor, n_fft: int, samples: int) -> Tensor:
    """The inverse of :func:`stft`: ``[B, samples]``.

    Squared Hann windows a quarter apart sum to 3/2 everywhere, so there is no envelope to divide by: torch.istft looks
    whether its envelope is zero, which waits for a GPU.
    """
    hop = n_fft // 4
    frames = torch.fft.irfft(spectrum, n=n_fft)
    window = torch.hann_window(n_fft, dtype=frames.dtype, device=frames.device) / 1.5
    pieces = (frames * window).unflatten(-1, (4, hop))
    audio = torch.stack([F.pad(pieces[:, :, k], (0, 0, k, 3 - k)) for k in range(4)]).sum(0)
    return audio.flatten(1)[:, 3 * hop : 3 * hop + samples]


def delayed(spectrum: Tensor, frames: int) -> Tensor:
    """``[B, frames, bins]``, later by so many frames: silence comes in, the end falls off."""
    return F.pad(spectrum, (0, 0, frames, -frames)) if frames < spectrum.shape[1] else torch.zeros_like(spectrum)
