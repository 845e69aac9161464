"""The layers of Oobleck: Snake, convolutions, a residual unit, and the way from one rate to another.

A convolution that changes the rate, kernel 2 s and stride s, is one matrix product here: an output block of s
positions is made from two input blocks (up) and an output position from two input blocks of s positions (down).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_kernels import snake
from presto_models.autoencoders.stretches import Layer, clip, outside, pad


class Snake(Layer):
    """x + sin(alpha x)^2 / (beta + 1e-9); alpha and beta themselves, a checkpoint holds their logarithms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, begin: int, end: int, length: int) -> Tensor:
        return snake(x, self.alpha, self.beta)


class Conv(Layer):
    """Kernel k, stride 1, zeros outside: ``[B, C, T]`` to ``[B, C', T]``; k odd."""

    def __init__(self, channels: int, out_channels: int, kernel: int, *, dilation: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, channels, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.dilation, self.reach = dilation, (kernel - 1) * dilation // 2
        nn.init.normal_(self.weight, std=(channels * kernel) ** -0.5)

    def source(self, begin: int, end: int) -> tuple[int, int]:
        return begin - self.reach, end + self.reach

    def forward(self, x: Tensor, begin: int, end: int, length: int) -> Tensor:
        before, behind = outside(self.source(begin, end), length)
        if before != behind:
            x, before = F.pad(x, (before, behind)), 0
        return F.conv1d(x, self.weight, self.bias, padding=before, dilation=self.dilation)


class ResidualUnit(Layer):
    """x + W snake(conv(snake(x))), the convolution of kernel 7 and dilated, W of kernel 1."""

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
        # snake(0) is 0, so that the zeros outside the signal are the same before and after it.
        h = self.conv1(snake(x, self.snake1.alpha, self.snake1.beta), begin, end, length)
        h = snake(h, self.snake2.alpha, self.snake2.beta)
        first = clip(self.source(begin, end), length)[0]
        # The product adds itself to its own copy of x: one pass less than a convolution and an addition behind it.
        y = x[..., begin - first : end - first] + self.bias2[:, None]
        return y.baddbmm_(self.weight2.expand(len(h), -1, -1), h)


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
        """``[C, C', 2 s]``, as ``ConvTranspose1d`` has it, to ``[s C', 2 C]``."""
        stride = weight.shape[2] // 2
        return weight.unflatten(2, (2, stride)).permute(3, 1, 2, 0).flatten(2).flatten(0, 1).contiguous()

    def length(self, positions: int) -> int:
        return positions * self.stride

    def source(self, begin: int, end: int) -> tuple[int, int]:
        first, last = self._blocks(begin, end)
        return first - 1, last

    def forward(self, x: Tensor, begin: int, end: int, length: int) -> Tensor:
        x = pad(x, outside(self.source(begin, end), length))
        pairs = torch.cat((x[..., 1:], x[..., :-1]), dim=1)
        bias = self.bias.repeat(self.stride)[:, None]
        y = torch.baddbmm(bias, self.weight.expand(len(x), -1, -1), pairs)
        y = y.unflatten(1, (self.stride, -1)).permute(0, 2, 3, 1).flatten(2)
        skip = begin + self.stride // 2 - self._blocks(begin, end)[0] * self.stride
        return y[..., skip : skip + end - begin]

    def _blocks(self, begin: int, end: int) -> tuple[int, int]:
        half = self.stride // 2
        return (begin + half) // self.stride, (end - 1 + half) // self.stride + 1


class Down(Layer):
    """A convolution of kernel 2 s, stride s, padding s / 2: one position for every s; s even.  ``weight [C', C, 2 s]``."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, channels, 2 * stride))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.normal_(self.weight, std=(2 * stride * channels) ** -0.5)

    def length(self, positions: int) -> int:
        return positions // self.stride

    def source(self, begin: int, end: int) -> tuple[int, int]:
        half = self.stride // 2
        return begin * self.stride - half, (end + 1) * self.stride - half

    def forward(self, x: Tensor, begin: int, end: int, length: int) -> Tensor:
        x = pad(x, outside(self.source(begin, end), length))
        blocks = x.unflatten(-1, (end - begin + 1, self.stride)).transpose(-1, -2)
        pairs = torch.stack((blocks[..., :-1], blocks[..., 1:]), dim=2).flatten(1, 3)
        return torch.baddbmm(self.bias[:, None], self.weight.flatten(1).expand(len(x), -1, -1), pairs)
