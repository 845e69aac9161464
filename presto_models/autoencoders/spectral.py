"""A light autoencoder on the frames of a Fourier transform, back to audio by the inverse transform.

    encode   audio [B, 1, T] -> STFT, 4 frames a latent -> log magnitude and phase advance -> 2 frames a token
             -> ConvNeXt -> 2 tokens a latent -> mean, log variance [B, N, C]
    decode   latents [B, N, C] -> 2 tokens each -> ConvNeXt -> 2 frames a token: magnitude and phase advance
             -> phases, summed along the partials -> inverse STFT -> audio [B, 1, N hop]

Blocks at frame rate before an inverse STFT are Vocos' idea (Siuzdak 2023, 2306.00814), the blocks ConvNeXt's (Liu et
al. 2022, 2201.03545) in one dimension with SwiGLU for the GELU.  That a network predicts the *advance* of the phase
from frame to frame, not the phase, is GANSynth's (Engel et al. 2019, 1902.08710): a steady tone then has steady
features, so latents carry no phase, which would turn many times a second and be noise to a diffusion model.  Phases
are summed as in a phase vocoder with its peaks locked (Laroche & Dolson 1999): see
:mod:`presto_models.autoencoders.phases`.  So the output sounds like the input without having its waveform: a waveform
distance such as SI-SDR says nothing here.

Everything between the transforms is matrix products at token rate: no audio-rate convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_kernels import adaln_modulate, gated_residual, swiglu
from presto_models.autoencoders.base import Autoencoder
from presto_models.autoencoders.phases import accumulate_phases, noise_tile, overlap_add, phase_advance

FRAMES_PER_TOKEN, TOKENS_PER_LATENT = 2, 2
FRAMES_PER_LATENT = FRAMES_PER_TOKEN * TOKENS_PER_LATENT
FLOOR = 1e-2  # added to magnitudes before the logarithm; a full-scale tone has n_fft / 4 = 512, so this is -94 dB
LOG_VARIANCE = (-14.0, 4.0)
LOG_MAGNITUDE_MAX = 7.0  # exp(7) is above the sum of the window, 1024


@dataclass(frozen=True)
class SpectralAutoencoderConfig:
    """Sizes of a :class:`SpectralAutoencoder`.

    Args:
        sample_rate: Hz.
        latent_channels: C.
        n_fft: length of a frame, a multiple of 4; frames are n_fft / 4 apart, a latent stands for n_fft samples.
        tonal_bins: bins whose phase advance is coded; above them (11 kHz) phases are random.
        dim, mlp_dim: width of the tokens and inner width of SwiGLU.
        encoder_blocks, decoder_blocks: depth.
        kernel_size: of the depthwise convolution over tokens, odd.
    """

    sample_rate: int = 44100
    latent_channels: int = 32
    n_fft: int = 2048
    tonal_bins: int = 512
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
        if self.tonal_bins > self.bins:
            raise ValueError(f"tonal_bins must be at most n_fft / 2 + 1 = {self.bins}, got {self.tonal_bins}")

    @property
    def bins(self) -> int:
        """Frequencies of a frame."""
        return self.n_fft // 2 + 1

    @property
    def features(self) -> int:
        """Numbers a frame: log magnitudes, and (cos, sin) of the phase advance of the tonal bins."""
        return self.bins + 2 * self.tonal_bins

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SpectralAutoencoderConfig:
        """The config :meth:`to_dict` wrote."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Frames:
    """``log_magnitude [B, frames, bins]``, of |S| + FLOOR; ``advance [B, frames, tonal bins, 2]``: (cos, sin) of the
    phase's advance since the last frame, beyond that of the bin's centre.  Predicted vectors are shorter than 1 where
    the advance is uncertain, as it is in noise.
    """

    log_magnitude: Tensor
    advance: Tensor

    @property
    def magnitude(self) -> Tensor:
        """|S|."""
        return (self.log_magnitude.clamp(max=LOG_MAGNITUDE_MAX).exp() - FLOOR).clamp_min(0)


class SpectralAutoencoder(Autoencoder):
    """Mono audio at ``sample_rate`` to C channels, one latent per ``n_fft`` samples (21.5 a second), and back.

    ``encode`` and ``decode`` as :class:`Autoencoder` promises; :meth:`analyse`, :meth:`posterior` and :meth:`frames`
    are what training needs.
    """

    audio_channels = 1
    noise: Tensor

    def __init__(self, config: SpectralAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate, self.latent_channels, self.hop = config.sample_rate, config.latent_channels, config.n_fft
        self.frame_hop = config.n_fft // 4
        self.register_buffer("noise", noise_tile(config.bins), persistent=False)
        self.encoder = nn.Sequential(
            nn.Linear(FRAMES_PER_TOKEN * config.features, config.dim),
            *(ConvNeXtBlock(config) for _ in range(config.encoder_blocks)),
            Norm(config.dim),
        )
        self.to_posterior = nn.Linear(TOKENS_PER_LATENT * config.dim, 2 * config.latent_channels)
        self.from_latents = nn.Linear(config.latent_channels, TOKENS_PER_LATENT * config.dim)
        self.decoder = nn.Sequential(
            *(ConvNeXtBlock(config) for _ in range(config.decoder_blocks)),
            Norm(config.dim),
            nn.Linear(config.dim, FRAMES_PER_TOKEN * config.features),
        )

    @property
    def decoder_context(self) -> int:
        """How many latents on either side reach into the frames of a latent."""
        return -(-self.config.decoder_blocks * (self.config.kernel_size // 2) // TOKENS_PER_LATENT)

    def analyse(self, audio: Tensor) -> Frames:
        """The frames of audio ``[B, 1, T]``, four a latent; they stand centred on their hop, silence around."""
        self.check_audio(audio)
        margin = (self.config.n_fft - self.frame_hop) // 2
        padded = F.pad(self.pad_to_hop(audio.float())[:, 0], (margin, margin))
        spectrum = torch.fft.rfft(padded.unfold(-1, self.config.n_fft, self.frame_hop) * self._window(audio.device))
        advance = phase_advance(spectrum[..., : self.config.tonal_bins])
        return Frames((spectrum.abs() + FLOOR).log(), advance)

    def posterior(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, each ``[B, N, C]``, fp32."""
        strength = frames.magnitude[..., : self.config.tonal_bins, None].clamp_min(1e-6).pow(0.3)
        parts = (frames.log_magnitude / 3, (0.3 * strength * frames.advance).flatten(2))
        tokens = torch.cat(parts, -1).unflatten(1, (-1, FRAMES_PER_TOKEN)).flatten(2)
        h = self.encoder(tokens.to(self._dtype()))
        h = self.to_posterior(h.unflatten(1, (-1, TOKENS_PER_LATENT)).flatten(2)).float()
        mean, log_variance = h.chunk(2, dim=-1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def frames(self, latents: Tensor) -> Frames:
        """The frames that latents ``[B, N, C]`` stand for, fp32."""
        self.check_latents(latents)
        h = self.from_latents(latents.to(self._dtype()))
        h = self.decoder(h.unflatten(2, (TOKENS_PER_LATENT, -1)).flatten(1, 2)).float()
        frames = h.unflatten(2, (FRAMES_PER_TOKEN, -1)).flatten(1, 2)
        log_magnitude, advance = frames.split((self.config.bins, 2 * self.config.tonal_bins), dim=-1)
        return Frames(3 * log_magnitude, advance.unflatten(-1, (-1, 2)))

    def encode(self, audio: Tensor) -> Tensor:
        return self.posterior(self.analyse(audio))[0]

    def decode(self, latents: Tensor) -> Tensor:
        self.check_latents(latents)
        return self.decode_chunked(latents, chunk=latents.shape[1])

    def decode_chunked(self, latents: Tensor, *, chunk: int = 1024) -> Tensor:
        """``decode``, the same audio, with the memory of ``chunk`` latents at a time (and of the audio itself)."""
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        self.check_latents(latents)
        length, context = latents.shape[1], self.decoder_context
        phases, pieces, tail = None, [], None
        for start in range(0, length, chunk):
            stop = min(start + chunk, length)
            left = max(start - context, 0)
            frames = self.frames(latents[:, left : stop + context])
            kept = slice(FRAMES_PER_LATENT * (start - left), FRAMES_PER_LATENT * (stop - left))
            frames = Frames(frames.log_magnitude[:, kept], frames.advance[:, kept])
            signal, phases = self._signal(frames, first_frame=FRAMES_PER_LATENT * start, before=phases)
            summed = overlap_add(signal, tail)
            whole = summed.shape[1] - 3 * self.frame_hop
            pieces.append(summed[:, :whole])
            tail = summed[:, whole:]
        assert tail is not None
        return self._divided(torch.cat((*pieces, tail), dim=1))

    def synthesise(self, frames: Frames) -> Tensor:
        """Audio ``[B, 1, frames hop]`` of frames: what :meth:`decode` does after the network."""
        return self._divided(overlap_add(self._signal(frames)[0]))

    def _signal(self, frames: Frames, *, first_frame: int = 0, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Windowed frames ``[B, F, n_fft]`` of signal, and the phases of the last."""
        magnitude = frames.magnitude
        angles = accumulate_phases(magnitude, frames.advance, self.noise, first_frame=first_frame, before=before)
        signal = torch.fft.irfft(torch.polar(magnitude, angles), n=self.config.n_fft) * self._window(angles.device)
        return signal, angles[:, -1]

    def _divided(self, audio: Tensor) -> Tensor:
        """Overlapping windows divided out and the margins cut off: ``[B, (F + 3) hop]`` to ``[B, 1, F hop]``."""
        margin = 3 * self.frame_hop // 2
        # Squares of the quarters of the window that meet at a hop: all four, fewer at the two ends.
        met = self._window(audio.device).square().view(4, self.frame_hop).cumsum(0)
        envelope = met[3].repeat(audio.shape[1] // self.frame_hop, 1)
        envelope[:3], envelope[-3:] = met[:3], met[3] - met[:3]
        # Cut off first: the window starts at 0, and 0 / 0 would reach the gradient.
        return (audio[:, margin:-margin] / envelope.flatten()[margin:-margin])[:, None]

    def _window(self, device: torch.device) -> Tensor:
        """Made anew and not kept: ``to(torch.bfloat16)`` would round what is kept, and raise its side lobes."""
        return torch.hann_window(self.config.n_fft, device=device)

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
