"""Oobleck's weights from other projects: diffusers' ``AutoencoderOobleck`` and stable-audio-tools.

:mod:`presto_kernels.oobleck` knows their names and how they lie.  Here the sizes are read off the tensors, and weight
norm is folded and exponentials are taken in fp32, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from presto_kernels.oobleck import Part, converted, factors, fold, parts
from presto_models.autoencoders.oobleck import Oobleck
from presto_models.autoencoders.oobleck_config import OobleckConfig
from presto_models.checkpoint import CheckpointError, load_into

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
            theirs = {
                tensor: self._weight(name) if tensor == "weight" else self._take(f"{name}.{tensor}")
                for tensor in part.tensors
            }
            yield from converted(part, {key: tensor for key, tensor in theirs.items() if tensor is not None})

    def _weight(self, name: str) -> Tensor | None:
        names = factors(name, self.left)
        if names is None:
            return self._take(f"{name}.weight")
        size, direction = map(self._take, names)
        try:
            if size is not None and direction is not None:
                return fold(size, direction)
        except ValueError:
            pass
        raise CheckpointError(f"{self.source}: {names[0]} does not belong to {names[1]}")

    def _take(self, name: str) -> Tensor | None:
        if name not in self.left:
            self.missing.append(self.prefix + name)
            return None
        self.left.discard(name)
        return self.weights[self.prefix + name].float()

    def _shape(self, part: Part) -> tuple[int, ...]:
        layer = self._name(part)
        _, name = factors(layer, self.left) or ("", f"{layer}.weight")
        if name not in self.left:
            raise CheckpointError(f"{self.source}: missing {self.prefix}{name}, or its two factors")
        shape = tuple(self.weights[self.prefix + name].shape)
        if len(shape) != 3:
            raise CheckpointError(f"{self.source}: {self.prefix}{name} has shape {shape}, no convolution's")
        return shape

    def _name(self, part: Part) -> str:
        return part.diffusers if self.project == "diffusers" else part.tools


def _some(names: Sequence[str]) -> str:
    return f"{list(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
