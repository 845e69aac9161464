"""An Oobleck decoder's weights in PyTorch's own layers: Conv1d, ConvTranspose1d and Snake as everybody writes it.

It computes what :meth:`presto_models.autoencoders.Oobleck.decode` computes, whole and in ``[B, C, T]``, as diffusers'
module does, which a GPU runner need not have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from presto_models.autoencoders.oobleck import Oobleck
from presto_models.autoencoders.oobleck_layers import Conv, ResidualUnit, Snake, Up
from presto_models.autoencoders.stretches import Chain


def plain_decoder(autoencoder: Oobleck, dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
    """Latents ``[B, N, C]`` to audio ``[B, audio_channels, N hop]``, fp32 (float64 in float64); weights are copied.

    Args:
        dtype: of the copy; None: the autoencoder's.
    """
    own = next(autoencoder.parameters())
    module = _plain(autoencoder.decoder).to(device=own.device, dtype=dtype or own.dtype)
    module.eval().requires_grad_(False)
    wide = torch.promote_types(dtype or own.dtype, torch.float32)

    def decode(latents: Tensor) -> Tensor:
        return module(latents.to(dtype or own.dtype).mT).to(wide)

    return decode


class PlainSnake(nn.Module):
    """x + sin(alpha x)^2 / (beta + 1e-9), ``[B, C, T]``, one elementwise operator after another."""

    def __init__(self, layer: Snake) -> None:
        super().__init__()
        self.alpha, self.beta = (_copy(weight[:, None]) for weight in (layer.alpha, layer.beta))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.beta + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)


class PlainUnit(nn.Module):
    """x + conv 1(Snake(conv 7(Snake(x))))."""

    def __init__(self, layer: ResidualUnit) -> None:
        super().__init__()
        last = _convolution(layer.weight2[:, :, None], layer.bias2)
        self.branch = nn.Sequential(_plain(layer.snake1), _plain(layer.conv1), _plain(layer.snake2), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _plain(layer: nn.Module) -> nn.Module:
    if isinstance(layer, Chain):
        return nn.Sequential(*map(_plain, layer))
    if isinstance(layer, Snake):
        return PlainSnake(layer)
    if isinstance(layer, ResidualUnit):
        return PlainUnit(layer)
    if isinstance(layer, Conv):
        return _convolution(layer.weight, layer.bias, padding=layer.reach, dilation=layer.dilation)
    if isinstance(layer, Up):
        return _transposed(layer)
    raise TypeError(f"a decoder has no {type(layer).__name__}")


def _convolution(weight: Tensor, bias: Tensor | None, *, padding: int = 0, dilation: int = 1) -> nn.Conv1d:
    out_channels, channels, kernel = weight.shape
    with torch.device("meta"):
        module = nn.Conv1d(channels, out_channels, kernel, padding=padding, dilation=dilation, bias=bias is not None)
    module.weight, module.bias = _copy(weight), None if bias is None else _copy(bias)
    return module


def _transposed(layer: Up) -> nn.ConvTranspose1d:
    stride, out_channels = layer.stride, layer.bias.shape[0]
    channels = layer.weight.shape[1] // 2
    module = nn.ConvTranspose1d(channels, out_channels, 2 * stride, stride, stride // 2, device="meta")
    # Up.matrix undone: [s C', 2 C] to [C, C', 2 s].
    module.weight = _copy(layer.weight.view(stride, out_channels, 2, channels).permute(3, 1, 2, 0).flatten(2))
    module.bias = _copy(layer.bias)
    return module


def _copy(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
