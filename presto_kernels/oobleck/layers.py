"""The layers of Oobleck: Snake, convolutions, a residual unit, and the way from one rate to another.

Tensors are ``[B, C, T]`` and lie either as that says or channels-last, ``x.mT`` contiguous.  Channels-last is what a
CPU runs, without gradients: a convolution there is at the processor's matrix rate with nothing put in another order
before and behind it, and positions joined or split are a view.  The other is what a GPU and what gradients run.

A convolution that changes the rate, kernel 2 s and stride s, is one matrix product: an output block of s positions is
made from two input blocks (up) and an output position from two input blocks of s positions (down).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_kernels.oobleck.stretches import Layer, channels_last, clip, outside, pad
from presto_kernels.ops.activation.api import snake


@functools.cache
def _has_amx() -> bool:
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16"))


def as_product(x: Tensor) -> bool:
    """Whether a convolution of stride 1 on channels-last ``x`` runs as one matrix product of the shifted rows.

    | processor, bf16 | convolution | matrix product | so |
    |---|---|---|---|
    | AMD Zen 4, 2 cores, AVX-512 BF16 | 0.44 TFLOP/s | 0.40 | convolution |
    | 2 cores with AMX | 0.27 | 2.1 | matrix product, though its rows are kernel times as long |

    The convolution with AMX was measured as diffusers runs it; how fast a channels-last one is there is not known.
    """
    return x.dtype == torch.bfloat16 and _has_amx()


def periodic(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """x + sin(alpha x)^2 / (beta + 1e-9), in x's layout."""
    if not channels_last(x):
        return snake(x, alpha, beta)
    rows = x.mT
    return snake(rows.reshape(-1, x.shape[1], 1), alpha, beta).view(rows.shape).mT


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1) -> Tensor:
    """A convolution without padding that stays channels-last; conv1d would turn its input round twice."""
    return F.conv2d(x.unsqueeze(2), weight.unsqueeze(2), bias, dilation=(1, dilation)).squeeze(2)


class Snake(Layer):
    """x + sin(alpha x)^2 / (beta + 1e-9); alpha and beta themselves, where a checkpoint holds their logarithms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, begin: int, end: int, length: int) -> Tensor:
        return periodic(x, self.alpha, self.beta)


class Conv(Layer):
    """Kernel k, stride 1, zeros outside: ``[B, C, T]`` to ``[B, C', T]``; k odd."""

    def __init__(self, channels: int, out_channels: int, kernel: int, *, dilation: int = 1, bias: bool = True) -> None:
        super().__init__()
        # [C', C, k] as in torch.nn.Conv1d, but laid out channels-last as the convolution on a CPU wants it.
        self.weight = nn.Parameter(torch.empty(out_channels, kernel, channels).mT)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.dilation, self.reach = dilation, (kernel - 1) * dilation // 2
        nn.init.normal_(self.weight, std=(channels * kernel) ** -0.5)

    def source(self, begin: int, end: int) -> tuple[int, int]:
        return begin - self.reach, end + self.reach

    def forward(self, x: Tensor, begin: int, end: int, length: int) -> Tensor:
        beside = outside(self.source(begin, end), length)
        if not channels_last(x) and beside[0] == beside[1]:  # the whole signal: the convolution pads by itself
            return F.conv1d(x, self.weight.contiguous(), self.bias, padding=beside[0], dilation=self.dilation)
        x = pad(x, beside)
        if not channels_last(x):
            return F.conv1d(x, self.weight.contiguous(), self.bias, dilation=self.dilation)
        if not as_product(x):
            return convolve(x, self.weight, self.bias, self.dilation)
        shifts = range(0, self.weight.shape[2] * self.dilation, self.dilation)
        rows = torch.cat([x.mT[:, shift : shift + end - begin] for shift in shifts], dim=-1)
        return F.linear(rows, self.weight.mT.flatten(1), self.bias).mT


class ResidualUnit(Layer):
    """x + W snake(conv(snake(x))), the convolution of kernel 7 and dilated, W ``weight2`` of kernel 1."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.snake1, self.snake2 = Snake(channels), Snake(channels)
        self.conv1 = Conv(channels, channels, 7, dilation=dilation)
        self.weight2 = nn.Parameter(torch.empty(channels, channels))
        self.bias2 = nn.Parameter(torch.zeros(channels))
        nn.init.normal_(self.weight2, std=channels**-0.5)

    def source(self, begin: int, end: int) -> tuple[int, int]:
        return self.conv1.source(begin, end)

    def forward(self, x: Tensor, begin: int, end: int, length: int) -> Tensor:
        first = clip(self.source(begin, end), length)[0]
        middle = x[..., begin - first : end - first]
        # snake(0) is 0, so that the zeros outside the signal are the same before and after it.
        h = self.conv1(periodic(x, self.snake1.alpha, self.snake1.beta), begin, end, length)
        h = periodic(h, self.snake2.alpha, self.snake2.beta)
        if channels_last(x):
            return convolve(h, self.weight2.unsqueeze(2), self.bias2).add_(middle)
        return (middle + self.bias2[:, None]).baddbmm_(self.weight2.expand(len(h), -1, -1), h)


class Up(Layer):
    """A transposed convolution of kernel 2 s, stride s, padding s / 2: s times the positions; s even.

        y[s j - s/2 + k] = W[k] x[j] + W[s + k] x[j - 1] + bias                              0 <= k < s

    ``weight [s C', 2 C]``: row (k, c'), column (0, c) of x[j] and (1, c) of x[j - 1].
    """

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(stride * out_channels, 2 * channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.normal_(self.weight, std=(2 * channels) ** -0.5)

    @staticmethod
    def matrix(weight: Tensor) -> Tensor:
        """``[C, C', 2 s]``, as ``torch.nn.ConvTranspose1d`` has it, to ``[s C', 2 C]``."""
        return weight.unflatten(2, (2, -1)).permute(3, 1, 2, 0).flatten(2).flatten(0, 1)

    def length(self, positions: int) -> int:
        return positions * self.stride

    def source(self, begin: int, end: int) -> tuple[int, int]:
        first, last = self._blocks(begin, end)
        return first - 1, last

    def forward(self, x: Tensor, begin: int, end: int, length: int) -> Tensor:
        x = pad(x, outside(self.source(begin, end), length))
        bias = self.bias.repeat(self.stride)
        if channels_last(x):
            rows = torch.cat((x.mT[:, 1:], x.mT[:, :-1]), dim=-1)
            y = F.linear(rows, self.weight, bias).unflatten(2, (self.stride, -1)).flatten(1, 2).mT
        else:
            pairs = torch.cat((x[..., 1:], x[..., :-1]), dim=1)
            y = torch.baddbmm(bias[:, None], self.weight.expand(len(x), -1, -1), pairs)
            y = y.unflatten(1, (self.stride, -1)).permute(0, 2, 3, 1).flatten(2)
        skip = begin + self.stride // 2 - self._blocks(begin, end)[0] * self.stride
        return y[..., skip : skip + end - begin]

    def _blocks(self, begin: int, end: int) -> tuple[int, int]:
        half = self.stride // 2
        return (begin + half) // self.stride, (end - 1 + half) // self.stride + 1


class Down(Layer):
    """A convolution of kernel 2 s, stride s, padding s / 2: one position for every s; s even.

    ``weight [C', 2 s C]``: column (k, c) of kernel position k.
    """

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, 2 * stride * channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.normal_(self.weight, std=(2 * stride * channels) ** -0.5)

    @staticmethod
    def matrix(weight: Tensor) -> Tensor:
        """``[C', C, 2 s]``, as ``torch.nn.Conv1d`` has it, to ``[C', 2 s C]``."""
        return weight.mT.flatten(1)

    def length(self, positions: int) -> int:
        return positions // self.stride

    def source(self, begin: int, end: int) -> tuple[int, int]:
        half = self.stride // 2
        return begin * self.stride - half, (end + 1) * self.stride - half

    def forward(self, x: Tensor, begin: int, end: int, length: int) -> Tensor:
        x = pad(x, outside(self.source(begin, end), length))
        if channels_last(x):
            blocks = x.mT.unflatten(1, (-1, self.stride)).flatten(2)
            rows = torch.cat((blocks[:, :-1], blocks[:, 1:]), dim=-1)
            return F.linear(rows, self.weight, self.bias).mT
        blocks = x.unflatten(-1, (-1, self.stride)).permute(0, 3, 1, 2).flatten(1, 2)
        pairs = torch.cat((blocks[..., :-1], blocks[..., 1:]), dim=1)
        return torch.baddbmm(self.bias[:, None], self.weight.expand(len(x), -1, -1), pairs)
