"""The table of what is swapped in an Oobleck."""

from __future__ import annotations

import functools

from presto_kernels.integrations.oobleck import snake
from presto_kernels.integrations.oobleck.anatomy import Naming
from presto_kernels.integrations.oobleck.coders import FusedCoder, fits
from presto_kernels.integrations.swapping import Swap

_DIFFUSERS = "diffusers.models.autoencoders.autoencoder_oobleck"
_TOOLS = "stable_audio_tools.models"
_SNAKES = {"diffusers": f"{_DIFFUSERS}.Snake1d", "tools": f"{_TOOLS}.blocks.SnakeBeta"}


def _naming(project: str, side: str, at: str, *blocks: str) -> Naming:
    return Naming(project, side, frozenset(f"{at}.{block}" for block in blocks), _SNAKES[project])


class DiffusersEncoder(FusedCoder):
    naming = _naming("diffusers", "encoder", _DIFFUSERS, "OobleckEncoderBlock", "OobleckResidualUnit")


class DiffusersDecoder(FusedCoder):
    naming = _naming("diffusers", "decoder", _DIFFUSERS, "OobleckDecoderBlock", "OobleckResidualUnit")


class ToolsEncoder(FusedCoder):
    naming = _naming("tools", "encoder", f"{_TOOLS}.autoencoders", "EncoderBlock", "ResidualUnit")


class ToolsDecoder(FusedCoder):
    naming = _naming("tools", "decoder", f"{_TOOLS}.autoencoders", "DecoderBlock", "ResidualUnit")


def _coder(target: str, fused: type[FusedCoder], takes: str) -> Swap:
    runs = "weight norm once, layout and tiles, Snake (one more copy of the weights; with gradients, Snake alone)"
    return Swap(target, fused, runs, {takes}, functools.partial(fits, fused.naming))


SWAPS = [
    _coder(f"{_DIFFUSERS}.OobleckEncoder", DiffusersEncoder, "hidden_state"),
    _coder(f"{_DIFFUSERS}.OobleckDecoder", DiffusersDecoder, "hidden_state"),
    _coder(f"{_TOOLS}.autoencoders.OobleckEncoder", ToolsEncoder, "x"),
    _coder(f"{_TOOLS}.autoencoders.OobleckDecoder", ToolsDecoder, "x"),
    Swap(_SNAKES["diffusers"], snake.FusedSnake, "one pass", {"hidden_states"}, snake.fits),
    Swap(_SNAKES["tools"], snake.FusedSnake, "one pass", {"x"}, snake.fits),
]
