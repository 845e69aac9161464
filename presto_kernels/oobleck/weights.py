"""Oobleck's tensors in diffusers' ``AutoencoderOobleck`` and in stable-audio-tools: their names, and how they lie.

Both hold the same network under different names, every convolution in two factors (weight norm, by its old names or
those of ``torch.nn.utils.parametrizations``) and Snake's alpha and beta as logarithms.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_kernels.oobleck.layers import Down, Up

FACTORS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
_CONVERTED = {"up": Up.matrix, "down": Down.matrix, "pointwise": lambda weight: weight.squeeze(-1)}


@dataclass(frozen=True)
class Part:
    """A layer: what it is, its tensors here (``{}`` stands for weight, bias, alpha or beta), and its name elsewhere.

    kind: "conv", "conv without bias", "pointwise", "up", "down" or "snake".
    """

    kind: str
    own: str
    diffusers: str
    tools: str

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of its tensors, weight norm folded."""
        if self.kind == "snake":
            return "alpha", "beta"
        return ("weight",) if self.kind == "conv without bias" else ("weight", "bias")


def parts(levels: int) -> Iterator[Part]:
    """Every layer with weights of an Oobleck with so many levels, by all its names."""
    after, last = f"layers.{levels + 1}", f"layers.{levels + 2}"
    yield Part("conv", "encoder.0.0.{}", "encoder.conv1", "encoder.layers.0")
    yield Part("conv", "decoder.0.{}", "decoder.conv1", "decoder.layers.0")
    for i in range(levels):
        names = f"encoder.block.{i}", f"encoder.layers.{i + 1}.layers"
        here = int(i == 0)  # the first level begins with the first convolution
        yield from _units(f"encoder.{i}", here, *names, 0)
        yield Part("snake", f"encoder.{i}.{here + 3}.{{}}", f"{names[0]}.snake1", f"{names[1]}.3")
        yield Part("down", f"encoder.{i}.{here + 4}.{{}}", f"{names[0]}.conv1", f"{names[1]}.4")
        names = f"decoder.block.{i}", f"decoder.layers.{i + 1}.layers"
        yield Part("snake", f"decoder.{i + 1}.0.{{}}", f"{names[0]}.snake1", f"{names[1]}.0")
        yield Part("up", f"decoder.{i + 1}.1.{{}}", f"{names[0]}.conv_t1", f"{names[1]}.1")
        yield from _units(f"decoder.{i + 1}", 2, *names, 2)
    yield Part("snake", f"encoder.{levels}.0.{{}}", "encoder.snake1", f"encoder.{after}")
    yield Part("conv", f"encoder.{levels}.1.{{}}", "encoder.conv2", f"encoder.{last}")
    yield Part("snake", f"decoder.{levels}.5.{{}}", "decoder.snake1", f"decoder.{after}")
    yield Part("conv without bias", f"decoder.{levels}.6.{{}}", "decoder.conv2", f"decoder.{last}")


def _units(own: str, here: int, diffusers: str, tools: str, there: int) -> Iterator[Part]:
    for i in range(3):
        theirs, their_tools = f"{diffusers}.res_unit{i + 1}", f"{tools}.{there + i}.layers"
        mine = f"{own}.{here + i}"
        yield Part("snake", f"{mine}.snake1.{{}}", f"{theirs}.snake1", f"{their_tools}.0")
        yield Part("conv", f"{mine}.conv1.{{}}", f"{theirs}.conv1", f"{their_tools}.1")
        yield Part("snake", f"{mine}.snake2.{{}}", f"{theirs}.snake2", f"{their_tools}.2")
        yield Part("pointwise", f"{mine}.{{}}2", f"{theirs}.conv2", f"{their_tools}.3")


def factors(layer: str, names: Container[str]) -> tuple[str, str] | None:
    """What the size and the direction of a layer's weight are called among ``names``; None: it is whole."""
    for size, direction in FACTORS:
        if f"{layer}.{direction}" in names:
            return f"{layer}.{size}", f"{layer}.{direction}"
    return None


def fold(size: Tensor, direction: Tensor) -> Tensor:
    """Weight norm's ``g v / |v|``: g one number for each index of v's first axis, v ``[., ., k]``.

    Raises:
        ValueError: the two do not belong together.
    """
    if direction.dim() != 3 or size.numel() != len(direction):
        raise ValueError(f"a size of shape {tuple(size.shape)} beside a direction of {tuple(direction.shape)}")
    return direction * (size.view(-1, 1, 1) / torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True))


def converted(part: Part, theirs: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """A layer's tensors by our names and in our shapes, from theirs by ``part.tensors``, in their dtype."""
    for name, tensor in theirs.items():
        if part.kind == "snake":
            tensor = tensor.flatten().exp()
        elif name == "weight":
            tensor = _CONVERTED.get(part.kind, lambda weight: weight)(tensor)
        yield part.own.format(name), tensor
