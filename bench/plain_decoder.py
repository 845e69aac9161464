"""A decoder's weights in PyTorch's own layers: Conv1d, ConvTranspose1d, LayerNorm and Snake as everybody writes it.

Of an Oobleck it computes what :meth:`presto_models.autoencoders.Oobleck.decode` computes, whole and in ``[B, C, T]``,
as diffusers' module does, which a GPU runner need not have.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench import plain_ops
from presto_kernels.oobleck import Chain, Conv, ResidualUnit, Snake, Up
from presto_models.autoencoders.oobleck import Oobleck
from presto_models.autoencoders.spectral import ConvNeXtBlock, Norm, SpectralAutoencoder

NORM_EPS = 1e-6  # of adaln_modulate, which the fused norm calls


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


def plain_spectral(autoencoder: SpectralAutoencoder, dtype: torch.dtype | None = None) -> SpectralAutoencoder:
    """A copy whose decoder's blocks are PyTorch's own; what follows them, phases and transforms, is PyTorch anyway.

    Args:
        dtype: of the copy; None: the autoencoder's.
    """
    plain = copy.deepcopy(autoencoder)
    plain.decoder = nn.Sequential(*map(_plain, plain.decoder))
    return plain.to(dtype=dtype).eval().requires_grad_(False)


class PlainConvNeXt(nn.Module):
    """x + gate W2 swiglu(W1 norm(depthwise(x))) on tokens ``[B, N, D]``."""

    def __init__(self, layer: ConvNeXtBlock) -> None:
        super().__init__()
        self.depthwise, self.norm = layer.depthwise, _plain(layer.norm)
        self.proj_in, self.proj_out, self.gate = layer.proj_in, layer.proj_out, layer.gate

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x.mT).mT)
        return torch.addcmul(x, self.gate, self.proj_out(plain_ops.swiglu(self.proj_in(h))))


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
    if isinstance(layer, ConvNeXtBlock):
        return PlainConvNeXt(layer)
    if isinstance(layer, Norm):
        return _layer_norm(layer)
    if isinstance(layer, nn.Linear):
        return layer
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


def _layer_norm(layer: Norm) -> nn.LayerNorm:
    module = nn.LayerNorm(layer.weight.shape, eps=NORM_EPS, device="meta")
    module.weight, module.bias = _copy(layer.weight), _copy(layer.bias)
    return module


def _copy(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
