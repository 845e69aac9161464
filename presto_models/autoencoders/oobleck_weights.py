"""Oobleck's weights from other projects: diffusers' ``AutoencoderOobleck`` and stable-audio-tools.

Both hold the same network under different names, every convolution in two factors (weight norm, by its old names or
those of ``torch.nn.utils.parametrizations``) and Snake's alpha and beta as logarithms.  Sizes are read off the tensors;
weight norm is folded and the exponentials are taken here, in fp32, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_models.autoencoders.oobleck import Oobleck
from presto_models.autoencoders.oobleck_config import OobleckConfig
from presto_models.autoencoders.oobleck_layers import Down, Up
from presto_models.checkpoint import CheckpointError, load_into

_FACTORS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
_MARKERS = {"diffusers": "decoder.block.0.conv_t1.", "tools": "decoder.layers.1.layers.1."}
_LEVELS = {"diffusers": "decoder.block.{}.", "tools": "decoder.layers.{}.layers.1."}


def oobleck_from_state_dict(
    weights: Mapping[str, Tensor], *, sample_rate: int = 44100, source: object = "the state dict"
) -> Oobleck:
    """An :class:`Oobleck` in fp32 with the weights of a diffusers or stable-audio-tools state dict.

    A whole stable-audio-tools model will do, of which only the autoencoder is read; of a training checkpoint's copies
    it is the averaged one.

    Raises:
        CheckpointError: naming what is missing, not expected, or of another size; ``source`` says where.
    """
    reader = _Reader(weights, source)
    config = reader.config(sample_rate)
    converted = dict(reader.convert())
    if reader.missing or reader.left:
        raise CheckpointError(
            f"{source} is not a whole Oobleck of {reader.levels} levels: missing {_some(reader.missing)}, "
            f"not expected {_some(sorted(reader.prefix + name for name in reader.left))}"
        )
    with torch.device("meta"):
        model = Oobleck(config)
    model = model.to_empty(device="cpu")
    load_into(model, converted, source=source)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Part:
    """A layer: what it is, its tensors here (``{}`` stands for weight, bias, alpha or beta), and its name elsewhere."""

    kind: str
    own: str
    diffusers: str
    tools: str


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


_CONVERTED = {"up": Up.matrix, "down": Down.matrix, "pointwise": lambda weight: weight.squeeze(-1)}


class _Reader:
    """Takes tensors out of a foreign state dict, and keeps account of what is missing and what is left."""

    def __init__(self, weights: Mapping[str, Tensor], source: object) -> None:
        self.weights, self.source = weights, source
        found = [
            (key[: key.index(marker)], project)
            for project, marker in _MARKERS.items()
            for key in weights
            if marker in key
        ]
        if not found:
            raise CheckpointError(
                f"{source} holds no Oobleck of diffusers ({_MARKERS['diffusers']}*) or stable-audio-tools "
                f"({_MARKERS['tools']}*) among its {len(weights)} tensors, {_some(sorted(weights))}"
            )
        # Of a training checkpoint's copies the averaged one, which is what stable-audio-tools exports.
        self.prefix, self.project = min(found, key=lambda pair: ("ema" not in pair[0], len(pair[0])))
        self.left = {key[len(self.prefix) :] for key in weights if key.startswith(self.prefix)}
        self.missing: list[str] = []
        first, self.levels = int(self.project == "tools"), 0
        while any(key.startswith(_LEVELS[self.project].format(first + self.levels)) for key in self.left):
            self.levels += 1

    def config(self, sample_rate: int) -> OobleckConfig:
        """The sizes, read off the tensors."""
        ups = [self._shape(part) for part in parts(self.levels) if part.kind == "up"]
        audio, latent = (
            next(self._shape(part) for part in parts(self.levels) if part.diffusers == name)
            for name in ("encoder.conv1", "decoder.conv1")
        )
        channels = ups[-1][1]
        if any(width % channels or kernel % 2 for width, _, kernel in ups):
            raise CheckpointError(f"{self.source}: transposed convolutions of {ups} are no Oobleck's")
        try:
            return OobleckConfig(
                channels=channels,
                encoder_channels=audio[0],
                multiples=tuple(width // channels for width, _, _ in reversed(ups)),
                strides=tuple(kernel // 2 for _, _, kernel in reversed(ups)),
                latent_channels=latent[1],
                audio_channels=audio[1],
                sample_rate=sample_rate,
            )
        except ValueError as error:
            raise CheckpointError(f"{self.source}: {error}") from error

    def convert(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors by our names, in fp32."""
        for part in parts(self.levels):
            name = self._name(part)
            if part.kind == "snake":
                for which in ("alpha", "beta"):
                    logarithm = self._take(f"{name}.{which}")
                    if logarithm is not None:
                        yield part.own.format(which), logarithm.flatten().exp()
                continue
            weight = self._weight(name)
            if weight is not None:
                yield part.own.format("weight"), _CONVERTED.get(part.kind, lambda w: w)(weight)
            bias = None if part.kind == "conv without bias" else self._take(f"{name}.bias")
            if bias is not None:
                yield part.own.format("bias"), bias

    def _weight(self, name: str) -> Tensor | None:
        for size, direction in _FACTORS:
            if f"{name}.{direction}" in self.left:
                g, v = self._take(f"{name}.{size}"), self._take(f"{name}.{direction}")
                if g is None or v is None or v.dim() != 3 or g.numel() != len(v):
                    raise CheckpointError(f"{self.source}: {name}.{size} does not belong to {name}.{direction}")
                return v * (g.view(-1, 1, 1) / torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True))
        return self._take(f"{name}.weight")

    def _take(self, name: str) -> Tensor | None:
        if name not in self.left:
            self.missing.append(self.prefix + name)
            return None
        self.left.discard(name)
        return self.weights[self.prefix + name].float()

    def _shape(self, part: Part) -> tuple[int, ...]:
        name = self._name(part)
        for kind in ("weight", *(direction for _, direction in _FACTORS)):
            if f"{name}.{kind}" in self.left:
                shape = tuple(self.weights[f"{self.prefix}{name}.{kind}"].shape)
                if len(shape) != 3:
                    raise CheckpointError(
                        f"{self.source}: {self.prefix}{name}.{kind} has shape {shape}, no convolution's"
                    )
                return shape
        raise CheckpointError(f"{self.source}: missing {self.prefix}{name}.weight, or its two factors")

    def _name(self, part: Part) -> str:
        return part.diffusers if self.project == "diffusers" else part.tools


def _some(names: Sequence[str]) -> str:
    return f"{list(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
