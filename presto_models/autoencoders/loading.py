"""Autoencoders to files and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from presto_models.autoencoders.base import Autoencoder
from presto_models.autoencoders.oobleck import Oobleck
from presto_models.autoencoders.oobleck_config import OobleckConfig
from presto_models.autoencoders.spectral import SpectralAutoencoder, SpectralAutoencoderConfig
from presto_models.checkpoint import CheckpointError, load_into, load_weights, save_weights
from presto_models.components import AUTOENCODER_FILE, component

KIND = "autoencoder"
_TYPES: dict[str, tuple[Any, Any]] = {
    "oobleck": (Oobleck, OobleckConfig),
    "spectral": (SpectralAutoencoder, SpectralAutoencoderConfig),
}


def save_autoencoder(path: str | os.PathLike[str], model: Autoencoder, *, dtype: torch.dtype | None = None) -> Path:
    """Write ``model`` to ``path`` (a file, or a folder that gets ``autoencoder.safetensors``), stored as ``dtype``."""
    names = [name for name, (kind, _) in _TYPES.items() if isinstance(model, kind)]
    if not names:
        raise TypeError(f"model must be one of {', '.join(_TYPES)}, got {type(model).__name__}")
    weights = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in model.state_dict().items()}
    config = {"type": names[0], **model.config.to_dict()}  # type: ignore[union-attr, operator]
    path = Path(path)
    file = path if path.suffix == ".safetensors" else path / AUTOENCODER_FILE
    return save_weights(file, weights, kind=KIND, config=config)


def load_autoencoder(
    path: str | os.PathLike[str], *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Autoencoder:
    """The autoencoder in a checkpoint's file or folder, for inference: ``eval()``, no gradients to its weights.

    Of a folder without one it is that of the checkpoint's base (:func:`presto_models.components.component`).
    """
    file = component(path, AUTOENCODER_FILE) if Path(path).is_dir() else path
    weights, config = load_weights(file, kind=KIND)
    name = config.pop("type", None)
    if name not in _TYPES:
        raise CheckpointError(f"{file} holds an autoencoder of type {name!r}; known are {', '.join(_TYPES)}")
    model_type, config_type = _TYPES[name]
    model = model_type(config_type.from_dict(config))
    load_into(model, weights, source=file)
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)
