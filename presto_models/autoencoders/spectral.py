"""A light autoencoder that works on the frames of a Fourier transform and returns to audio by its inverse.

The idea of the inverse-STFT head is Vocos' (Siuzdak 2023, 2306.00814), the blocks are ConvNeXt's (Liu et al. 2022,
2201.03545) in one dimension, with SwiGLU for the GELU.  Sizes, and what follows, are ours.

    encode   audio [B, 1, T] -> STFT, 4 frames a latent -> demodulated, |S|^0.4 -> 2 frames a token -> ConvNeXt
             -> 2 tokens a latent -> mean, log variance [B, N, C]
    decode   latents [B, N, C] -> 2 tokens each -> ConvNeXt -> 2 frames a token -> c |c|^1.5 -> modulated
             -> inverse STFT -> audio [B, 1, N hop]

**Demodulated**: bin k of frame t is multiplied by exp(-2 pi i k t / 4), against the phase that a tone at the centre of
the bin gains from frame to frame.  A steady tone then turns by at most half a bin, 10.8 Hz here, which tokens at 43 Hz
can follow; a network that treats all times alike could not make it from raw phases, which gain up to a turn a frame.

Everything between the transforms is per token, so it is matrix products at bf16 speed: no audio-rate convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from presto_kernels import adaln_modulate, gated_residual, swiglu
from presto_models.autoencoders.base import Autoencoder

FRAMES_PER_TOKEN, TOKENS_PER_LATENT = 2, 2
LOG_VARIANCE = (-14.0, 4.0)


@dataclass(frozen=True)
class SpectralAutoencoderConfig:
    """Sizes of a :class:`SpectralAutoencoder`.

    Args:
        sample_rate: Hz.
        latent_channels: C.
        n_fft: length of a frame, a multiple of 4; frames are n_fft / 4 apart, a latent stands for n_fft samples.
        dim, mlp_dim: width of the tokens and inner width of SwiGLU.
        encoder_blocks, decoder_blocks: depth.
        kernel_size: of the depthwise convolution over tokens, odd.
    """

    sample_rate: int = 44100
    latent_channels: int = 32
    n_fft: int = 2048
    dim: int = 320
    mlp_dim: int = 640
    encoder_blocks: int = 4
    decoder_blocks: int = 6
    kernel_size: int = 7

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        if self.n_fft % 4:
            raise ValueError(f"n_fft must be a multiple of 4, got {self.n_fft}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SpectralAutoencoderConfig:
        """The config :meth:`to_dict` wrote."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self)


class SpectralAutoencoder(Autoencoder):
    """Mono audio at ``sample_rate`` to C channels, one latent per ``n_fft`` samples (21.5 a second), and back.

    ``encode`` and ``decode`` as :class:`Autoencoder` promises; :meth:`posterior` is what training needs.
    """

    audio_channels = 1
    window: Tensor

    def __init__(self, config: SpectralAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate, self.latent_channels, self.hop = config.sample_rate, config.latent_channels, config.n_fft
        self.frame_hop = config.n_fft // 4
        bins = config.n_fft // 2 + 1
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        self.encoder = nn.Sequential(
            nn.Linear(FRAMES_PER_TOKEN * 2 * bins, config.dim),
            *(ConvNeXtBlock(config) for _ in range(config.encoder_blocks)),
            Norm(config.dim),
        )
        self.to_posterior = nn.Linear(TOKENS_PER_LATENT * config.dim, 2 * config.latent_channels)
        self.from_latents = nn.Linear(config.latent_channels, TOKENS_PER_LATENT * config.dim)
        self.decoder = nn.Sequential(
            *(ConvNeXtBlock(config) for _ in range(config.decoder_blocks)),
            Norm(config.dim),
            nn.Linear(config.dim, FRAMES_PER_TOKEN * 2 * bins),
        )
    @property
    def decoder_context(self) -> int:
        """How many latents on either side reach into what a latent decodes to."""
        tokens = self.config.decoder_blocks * (self.config.kernel_size // 2)
        return -(-tokens // TOKENS_PER_LATENT) + 1  # and one for the overlap of the frames

    def posterior(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, each ``[B, N, C]``, fp32, of audio ``[B, 1, T]``."""
        self.check_audio(audio)
        spectrum = self._stft(self.pad_to_hop(audio.float()))
        compressed = torch.view_as_real(spectrum * (spectrum.abs() + 1e-5).pow(-0.6))  # |S|^0.4, phase kept
        tokens = rearrange(compressed, "b (n f) k c -> b n (f k c)", f=FRAMES_PER_TOKEN)
        h = self.encoder(tokens.to(self._dtype()))
        h = self.to_posterior(rearrange(h, "b (n p) d -> b n (p d)", p=TOKENS_PER_LATENT)).float()
        mean, log_variance = h.chunk(2, dim=-1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def encode(self, audio: Tensor) -> Tensor:
        return self.posterior(audio)[0]

    def decode(self, latents: Tensor) -> Tensor:
        self.check_latents(latents)
        h = self.from_latents(latents.to(self._dtype()))
        h = self.decoder(rearrange(h, "b n (p d) -> b (n p) d", p=TOKENS_PER_LATENT)).float()
        compressed = rearrange(h, "b n (f k c) -> b (n f) k c", f=FRAMES_PER_TOKEN, c=2)
        # c |c|^1.5, which undoes |S|^0.4: phase is linear in the network's output, as it is in the encoder's input.
        expanded = compressed * (compressed.square().sum(-1, keepdim=True) + 1e-12).pow(0.75)
        return self._istft(torch.view_as_complex(expanded))

    def _stft(self, audio: Tensor) -> Tensor:
        """Demodulated ``[B, frames, bins]`` of ``[B, 1, T]``: frames stand centred on their hop, silence around."""
        margin = (self.config.n_fft - self.frame_hop) // 2
        frames = F.pad(audio[:, 0], (margin, margin)).unfold(-1, self.config.n_fft, self.frame_hop) * self.window
        # exp(-2 pi i k t / 4) is a roll of frame t by t quarters: quarter j goes to where its absolute time says.
        parts = [frames[:, t::4].roll(t * self.frame_hop, -1) for t in range(4)]
        return torch.fft.rfft(torch.stack(parts, 2).flatten(1, 2))

    def _istft(self, spectrum: Tensor) -> Tensor:
        """``[B, 1, frames * frame_hop]``: least squares, frames weighted by the window and divided by its square."""
        batch, frames, _ = spectrum.shape
        quarters = torch.fft.irfft(spectrum, n=self.config.n_fft).view(batch, frames // 4, 4, 4, self.frame_hop)
        window = self.window.view(4, self.frame_hop)
        margin = 3 * self.frame_hop // 2
        audio = _overlap_add(quarters, window)[:, margin:-margin]
        envelope = _overlap_add(window.expand_as(quarters[:1]), window, rolled=False)[:, margin:-margin]
        return (audio / envelope).unsqueeze(1)

    def _dtype(self) -> torch.dtype:
        return self.from_latents.weight.dtype


class Norm(nn.Module):
    """Layer norm over the last dim with weight and bias; presto_kernels' fused one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return adaln_modulate(x, None, None, weight=self.weight, bias=self.bias)


class ConvNeXtBlock(nn.Module):
    """x + gate * W2 swiglu(W1 norm(depthwise(x))) on tokens ``[B, N, D]``."""

    def __init__(self, config: SpectralAutoencoderConfig) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(
            config.dim, config.dim, config.kernel_size, padding=config.kernel_size // 2, groups=config.dim
        )
        self.norm = Norm(config.dim)
        self.proj_in = nn.Linear(config.dim, 2 * config.mlp_dim)
        self.proj_out = nn.Linear(config.mlp_dim, config.dim)
        self.gate = nn.Parameter(torch.full((config.dim,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return gated_residual(x, self.proj_out(swiglu(self.proj_in(self.norm(h)))), self.gate)


def _overlap_add(quarters: Tensor, window: Tensor, *, rolled: bool = True) -> Tensor:
    """Windowed frames a quarter of their length apart, summed: ``[B, G, 4, 4, n/4]`` → ``[B, (4 G + 3) n/4]``.

    ``quarters[:, g, t, j]`` is quarter j of frame 4 g + t; when ``rolled`` it was turned by t quarters, so that the
    quarter that sounds i quarters into the frame is (t + i) mod 4.
    """
    batch, groups = quarters.shape[:2]
    total = quarters.new_zeros(batch, groups + 2, 4, quarters.shape[-1])  # 4 G + 3 and five that stay empty
    for t in range(4):
        for i in range(4):
            carry, place = divmod(t + i, 4)
            source = place if rolled else i
            total[:, carry : carry + groups, place].addcmul_(quarters[:, :, t, source], window[i])
    return total.flatten(1, 2)[:, : 4 * groups + 3].flatten(1)
