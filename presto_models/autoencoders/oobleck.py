"""Oobleck: the convolutional variational autoencoder of Stable Audio."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_models.autoencoders.base import Autoencoder
from presto_models.autoencoders.oobleck_config import OobleckConfig
from presto_models.autoencoders.oobleck_layers import Conv, Down, ResidualUnit, Snake, Up
from presto_models.autoencoders.stretches import Chain, clip

DILATIONS = (1, 3, 9)
TILE_ELEMENTS = 2**19
DEFAULT_CHUNK = 64


class Oobleck(Autoencoder):
    def __init__(self, config: OobleckConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate, self.audio_channels = config.sample_rate, config.audio_channels
        self.latent_channels, self.hop = config.latent_channels, config.hop
        self.encoder, self.decoder = _encoder(config), _decoder(config)

    def encode(self, audio: Tensor) -> Tensor:
        return self.posterior(audio)[0]

    def posterior(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        self.check_audio(audio)
        x = _layout(self.pad_to_hop(audio.to(self._dtype)))
        length = x.shape[-1]
        mean, scale = _wide(self.encoder(x, 0, length // self.hop, length)).transpose(1, 2).chunk(2, dim=-1)
        return mean.contiguous(), F.softplus(scale) + 1e-4

    def decode(self, latents: Tensor) -> Tensor:
        self.check_latents(latents)
        x = _layout(latents.to(self._dtype).mT)
        return _wide(self.decoder(x, 0, latents.shape[1] * self.hop, latents.shape[1]))

    def decode_chunked(self, latents: Tensor, *, chunk: int = DEFAULT_CHUNK) -> Tensor:
        self.check_latents(latents)
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 latent, got {chunk}")
        x = _layout(latents.to(self._dtype).mT)
        length = latents.shape[1]
        pieces = []
        for begin in range(0, length, chunk):
            span = begin * self.hop, min(begin + chunk, length) * self.hop
            low, high = clip(self.decoder.source(*span), length)
            pieces.append(_wide(self.decoder(x[..., low:high], *span, length)))
        return torch.cat(pieces, dim=-1)

    @property
    def reach(self) -> tuple[int, int]:
        before, behind = self.decoder.source(0, self.hop)
        return -before, behind - 1

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _layout(x: Tensor) -> Tensor:
    if x.is_cpu and not torch.is_grad_enabled():
        return x.mT.contiguous().mT
    return x.contiguous()


def _tile(channels: int) -> int:
    return max(1024, TILE_ELEMENTS // channels)


def _units(channels: int) -> list[nn.Module]:
    return [ResidualUnit(channels, dilation) for dilation in DILATIONS]


def _encoder(config: OobleckConfig) -> Chain:
    widths = config.widths(config.encoder_channels)
    stages = [
        Chain([*_units(channels), Snake(channels), Down(channels, wider, stride)], _tile(channels) // stride)
        for channels, wider, stride in zip(widths, widths[1:], config.strides, strict=False)
    ]
    stages[0].insert(0, Conv(config.audio_channels, widths[0], 7))
    return Chain([*stages, Chain([Snake(widths[-1]), Conv(widths[-1], 2 * config.latent_channels, 3)])])


def _decoder(config: OobleckConfig) -> Chain:
    widths = config.widths(config.channels)
    stages = [
        Chain([Snake(wider), Up(wider, channels, stride), *_units(channels)], _tile(channels))
        for channels, wider, stride in zip(widths, widths[1:], config.strides, strict=False)
    ]
    stages[0].extend([Snake(widths[0]), Conv(widths[0], config.audio_channels, 7, bias=False)])
    return Chain([Conv(config.latent_channels, widths[-1], 7), *reversed(stages)])
