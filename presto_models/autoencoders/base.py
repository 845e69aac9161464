"""What every autoencoder promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Autoencoder(nn.Module, ABC):
    """Audio to latents and back.

    Attributes:
        sample_rate: Hz.  audio_channels: 1 or 2.
        latent_channels: C.  hop: samples of audio a latent stands for.
    """

    sample_rate: int
    audio_channels: int
    latent_channels: int
    hop: int

    @abstractmethod
    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, audio_channels, T]`` in [-1, 1] to latents ``[B, ceil(T / hop), C]``, fp32: the posterior's mean.

        T is padded with silence to a multiple of ``hop``.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, N, C]`` to audio ``[B, audio_channels, N hop]``, fp32."""

    def latents_for(self, samples: int) -> int:
        """How many latents hold this many samples, rounded up."""
        return -(-samples // self.hop)

    def check_audio(self, audio: Tensor) -> None:
        """Raises ValueError unless ``audio`` is floating point ``[B, audio_channels, T]`` with T >= 1."""
        fits = audio.dim() == 3 and audio.shape[1] == self.audio_channels and audio.shape[2] > 0
        if not fits or not audio.is_floating_point():
            raise ValueError(
                f"audio must be floating-point [B, {self.audio_channels}, T] with T >= 1, "
                f"got {audio.dtype} {tuple(audio.shape)}"
            )

    def check_latents(self, latents: Tensor) -> None:
        """Raises ValueError unless ``latents`` is floating point ``[B, N, C]`` with N >= 1."""
        fits = latents.dim() == 3 and latents.shape[2] == self.latent_channels and latents.shape[1] > 0
        if not fits or not latents.is_floating_point():
            raise ValueError(
                f"latents must be floating-point [B, N, {self.latent_channels}] with N >= 1, "
                f"got {latents.dtype} {tuple(latents.shape)}"
            )

    def pad_to_hop(self, audio: Tensor) -> Tensor:
        """``audio`` with silence behind it, up to a multiple of ``hop``."""
        return torch.nn.functional.pad(audio, (0, -audio.shape[-1] % self.hop))
