"""Oobleck: the convolutional variational autoencoder of Stable Audio."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_kernels.oobleck import clip, decoder_chain, encoder_chain, layout, whole
from presto_models.autoencoders.base import Autoencoder
from presto_models.autoencoders.oobleck_config import OobleckConfig


class Oobleck(Autoencoder):
    """A waveform as few latents, and back: residual units of dilated convolutions and Snake, and strided convolutions.

        encoder   conv 7 -> for each stride s: 3 residual units (dilations 1, 3, 9), Snake, conv 2 s / s
                  -> Snake, conv 3 -> (mean, scale)
        decoder   conv 7 -> for each stride s, back: Snake, transposed conv 2 s / s, 3 residual units
                  -> Snake, conv 7 -> audio
        unit      x + conv 1(Snake(conv 7(Snake(x))))

    Computes what diffusers' ``AutoencoderOobleck`` and stable-audio-tools' ``oobleck`` compute, with weight norm folded
    and Snake's alpha and beta taken out of their logarithms; :func:`load_stable_audio_vae` reads both.  It runs in the
    dtype of its weights.  On a CPU and where no gradient is recorded, each level is computed in tiles that fit the
    cache; on CUDA shapes depend on the input's alone and nothing asks the device a question.

    Source: Evans et al. 2024, "Stable Audio Open" (arXiv 2407.14358); the public code of stable-audio-tools.
    """

    def __init__(self, config: OobleckConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate, self.audio_channels = config.sample_rate, config.audio_channels
        self.latent_channels, self.hop = config.latent_channels, config.hop
        latents, audio = config.latent_channels, config.audio_channels
        self.encoder = encoder_chain(audio, config.widths(config.encoder_channels), config.strides, 2 * latents)
        self.decoder = decoder_chain(latents, config.widths(config.channels), config.strides, audio)

    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, audio_channels, T]`` to the posterior's mean ``[B, ceil(T / hop), C]``, fp32."""
        return self.posterior(audio)[0]

    def posterior(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, each ``[B, ceil(T / hop), C]``, fp32 (float64 in float64).

        std = softplus(scale) + 1e-4, (mean, scale) the two halves of the encoder's output.
        """
        self.check_audio(audio)
        x = self.pad_to_hop(audio.to(self._dtype))
        mean, scale = _wide(whole(self.encoder, x)).mT.chunk(2, dim=-1)
        return mean.contiguous(), F.softplus(scale.contiguous()) + 1e-4

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, N, C]`` to audio ``[B, audio_channels, N hop]``, fp32 (float64 in float64).

        Differentiable in the latents and the weights.
        """
        self.check_latents(latents)
        return _wide(whole(self.decoder, latents.to(self._dtype).mT)).contiguous()

    def decode_chunked(self, latents: Tensor, *, chunk: int = 64) -> Tensor:
        """:meth:`decode` in pieces of ``chunk`` latents: memory for one piece and the audio, whatever the length.

        Every piece sees the latents it depends on, ``context`` of them before and behind, and computes, level by level,
        only what it needs of them; there is no cross-fade, and nothing is approximated.

        Raises:
            ValueError: chunk is less than 1.
        """
        self.check_latents(latents)
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 latent, got {chunk}")
        x, length = layout(latents.to(self._dtype).mT), latents.shape[1]
        pieces = []
        for first in range(0, length, chunk):
            begin, end = first * self.hop, min(first + chunk, length) * self.hop
            low, high = clip(self.decoder.source(begin, end), length)
            pieces.append(_wide(self.decoder(x[..., low:high], begin, end, length)))
        return torch.cat(pieces, dim=-1).contiguous()

    @property
    def context(self) -> tuple[int, int]:
        """How many latents before and behind its own a stretch of ``hop`` samples depends on."""
        first, last = self.decoder.source(0, self.hop)
        return -first, last - 1

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
