"""Oobleck's encoder and decoder, built of their layers.

encoder   conv 7 -> for each stride s: 3 residual units (dilations 1, 3, 9), Snake, conv 2 s / s -> Snake, conv 3
decoder   conv 7 -> for each stride s, back: Snake, transposed conv 2 s / s, 3 residual units -> Snake, conv 7
unit      x + conv 1(Snake(conv 7(Snake(x))))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from presto_kernels.oobleck.layers import Conv, Down, ResidualUnit, Snake, Up
from presto_kernels.oobleck.stretches import Chain, clip

DILATIONS = (1, 3, 9)

# Elements of an activation that are computed at a time on a CPU.  Of the rate of a large matrix product, 5 s by
# "stable-audio" in bf16 ran at 77 % with 2^19, 82 % with 2^20, 86 % with 2^21 and 84 % with 2^22 (two cores, 1 MiB
# of L2 each, 32 MiB of L3; two rounds, whose ranges overlap from 2^20 on); memory doubles from one to the next.
TILE_ELEMENTS = 2**20


def encoder_chain(audio_channels: int, widths: Sequence[int], strides: Sequence[int], out_channels: int) -> Chain:
    """Audio ``[B, audio_channels, T]`` to ``[B, out_channels, T / hop]``, rounded down; hop the product of the strides.

    Args:
        widths: channels of every level from the audio down, one more than there are strides.
        strides: by how much the rate falls from level to level, from the audio down; even.
    """
    levels = [
        Chain([*_units(channels), Snake(channels), Down(channels, wider, stride)], tile=_tile(channels) // stride)
        for channels, wider, stride in zip(widths, widths[1:], strides, strict=False)
    ]
    levels[0].insert(0, Conv(audio_channels, widths[0], 7))
    return Chain([*levels, Chain([Snake(widths[-1]), Conv(widths[-1], out_channels, 3)])])


def decoder_chain(latent_channels: int, widths: Sequence[int], strides: Sequence[int], audio_channels: int) -> Chain:
    """Latents ``[B, latent_channels, N]`` to audio ``[B, audio_channels, N hop]``; the rest as in `encoder_chain`."""
    levels = [
        Chain([Snake(wider), Up(wider, channels, stride), *_units(channels)], tile=_tile(channels))
        for channels, wider, stride in zip(widths, widths[1:], strides, strict=False)
    ]
    levels[0].extend([Snake(widths[0]), Conv(widths[0], audio_channels, 7, bias=False)])
    return Chain([Conv(latent_channels, widths[-1], 7), *reversed(levels)])


def layout(x: Tensor) -> Tensor:
    """``x [B, C, T]`` in the layout the layers run fastest in where it is: see :mod:`presto_kernels.oobleck.layers`."""
    if x.is_cpu and not torch.is_grad_enabled():
        return x.mT.contiguous().mT
    return x.contiguous()


def whole(chain: Chain, x: Tensor) -> Tensor:
    """All that a chain makes of the signal ``x [B, C, T]``: ``[B, C', chain.length(T)]``, in any layout."""
    length, count = x.shape[-1], chain.length(x.shape[-1])
    low, high = clip(chain.source(0, count), length)
    return chain(layout(x[..., low:high]), 0, count, length)


def _tile(channels: int) -> int:
    return max(1024, TILE_ELEMENTS // channels)


def _units(channels: int) -> list[nn.Module]:
    return [ResidualUnit(channels, dilation) for dilation in DILATIONS]
