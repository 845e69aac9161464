"""Networks along time that compute any stretch of their output by itself, from the stretch of input it is made from.

Every layer says where a stretch comes from (`source`), so that a chain of layers can be asked for positions
[begin, end) of its output and computes exactly what these need, layer by layer: nothing is guessed and nothing is
blended.  The whole signal is the stretch [0, length).  Positions outside the signal are zeros, at every layer, as a
convolution's padding makes them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module, ABC):
    """``[B, C, T]`` to ``[B, C', T']``, in stretches."""

    def length(self, positions: int) -> int:
        """How many positions come out where this many go in."""
        return positions

    def source(self, begin: int, end: int) -> tuple[int, int]:
        """The input positions that outputs [begin, end) are made from; they may lie outside the signal."""
        return begin, end

    @abstractmethod
    def forward(self, x: Tensor, begin: int, end: int, length: int) -> Tensor:
        """Outputs [begin, end) for an input signal of ``length`` positions.

        Args:
            x: ``[B, C, T]``: of the signal, the positions of ``source(begin, end)`` that exist.
        """


def clip(span: tuple[int, int], length: int) -> tuple[int, int]:
    """The part of a span that lies in the signal."""
    return max(0, span[0]), min(length, span[1])


def outside(span: tuple[int, int], length: int) -> tuple[int, int]:
    """How many positions of a span lie before the signal and behind it."""
    return max(0, -span[0]), max(0, span[1] - length)


def channels_last(x: Tensor) -> bool:
    """Whether the channels of ``[B, C, T]`` lie side by side in memory."""
    return x.stride(1) == 1


def pad(x: Tensor, beside: tuple[int, int]) -> Tensor:
    """``x`` with zeros for the positions outside the signal, in x's layout; x itself where there are none."""
    if not any(beside):
        return x
    return F.pad(x.mT, (0, 0, *beside)).mT if channels_last(x) else F.pad(x, beside)


class Chain(nn.ModuleList):
    """Layers one after another; a :class:`Layer` itself.

    Args:
        tile: at most this many output positions at a time where nothing needs a gradient and x is on a CPU: what the
            layers hand each other then stays in the cache, and its memory is used again by the next tile.  None: all
            at once.
    """

    def __init__(self, layers: Iterable[nn.Module], tile: int | None = None) -> None:
        super().__init__(layers)
        self.tile = tile

    def length(self, positions: int) -> int:
        for layer in self._layers():
            positions = layer.length(positions)
        return positions

    def source(self, begin: int, end: int) -> tuple[int, int]:
        for layer in reversed(self._layers()):
            begin, end = layer.source(begin, end)
        return begin, end

    def forward(self, x: Tensor, begin: int, end: int, length: int) -> Tensor:
        if self.tile is None or end - begin <= self.tile or not x.is_cpu or torch.is_grad_enabled():
            return self._stretch(x, begin, end, length)
        first, out = clip(self.source(begin, end), length)[0], None
        for start in range(begin, end, self.tile):
            stop = min(start + self.tile, end)
            low, high = clip(self.source(start, stop), length)
            piece = self._stretch(x[..., low - first : high - first], start, stop, length)
            if out is None:
                batch, channels, _ = piece.shape
                out = piece.new_empty(batch, end - begin, channels).mT
            out[..., start - begin : stop - begin] = piece
        return cast(Tensor, out)

    def _stretch(self, x: Tensor, begin: int, end: int, length: int) -> Tensor:
        layers = self._layers()
        lengths = [length]
        for layer in layers:
            lengths.append(layer.length(lengths[-1]))
        spans = [(begin, end)]
        for layer, positions in zip(reversed(layers), reversed(lengths[:-1]), strict=True):
            spans.append(clip(layer.source(*spans[-1]), positions))
        for layer, span, positions in zip(layers, reversed(spans[:-1]), lengths, strict=False):
            x = layer(x, *span, positions)
        return x

    def _layers(self) -> Sequence[Layer]:
        return cast(Sequence[Layer], list(self))
