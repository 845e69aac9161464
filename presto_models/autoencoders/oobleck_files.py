"""Where Stable Audio's autoencoder lies on disk: diffusers' folders, stable-audio-tools' files, a hub id."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from presto_models.autoencoders.oobleck import Oobleck
from presto_models.autoencoders.oobleck_weights import oobleck_from_state_dict
from presto_models.checkpoint import CheckpointError, find_folder

HUB_FILES = ("*.json", "vae/*.json", "vae/*.safetensors", "diffusion_pytorch_model*.safetensors", "*.md")
WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors", "model.ckpt", "diffusion_pytorch_model.bin")
CONFIG_FILES = ("config.json", "model_config.json")


def load_stable_audio_vae(source: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> Oobleck:
    """Stable Audio's autoencoder as diffusers or stable-audio-tools stored it, ready to encode and decode.

    Args:
        source: a folder (diffusers: the autoencoder's own, or a pipeline's with ``vae/`` in it; stable-audio-tools:
            ``model.ckpt`` or ``model.safetensors``), a hub id ("owner/name"), or a file: .safetensors, .ckpt, .pt,
            .bin. ``config.json`` or ``model_config.json`` beside it gives the sample rate; else it is 44100 Hz.
        dtype: of the weights, which are folded in fp32 whatever this is.

    Raises:
        FileNotFoundError: there is nothing.  CheckpointError: it is cut short, or of another network; the message
        names what is missing, what is not expected, or what has another size.
    """
    file = _weight_file(Path(source) if Path(source).is_file() else find_folder(source, files=HUB_FILES))
    with _opened(file) as weights:
        model = oobleck_from_state_dict(weights, sample_rate=_sample_rate(file), source=file)
    return model.to(dtype)


def _weight_file(path: Path) -> Path:
    if path.is_file():
        return path
    for folder in (path / "vae", path):
        for name in WEIGHT_FILES:
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(f"no autoencoder in {path}: wanted one of {', '.join(WEIGHT_FILES)}, there or in vae/")


def _sample_rate(file: Path) -> int:
    """What the config beside a file of weights says; raises CheckpointError where it describes another network."""
    for path in (file.with_name(name) for name in CONFIG_FILES):
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(f"{path} is not JSON: {error}") from error
        if _final_tanh(config):
            raise CheckpointError(f"{path}: the decoder ends in tanh (final_tanh), which this Oobleck has not")
        return int(config.get("sampling_rate") or config.get("sample_rate") or 44100)
    return 44100


def _final_tanh(config: Mapping[str, Any]) -> bool:
    """Whether stable-audio-tools' config has a tanh behind the decoder; it has where nothing is said."""
    model = config.get("model", {})
    model = model.get("pretransform", {}).get("config", model)
    decoder = model.get("decoder", {})
    return decoder.get("type") == "oobleck" and decoder.get("config", {}).get("final_tanh", True)


@contextmanager
def _opened(file: Path) -> Iterator[Mapping[str, Tensor]]:
    """The tensors of a file, read one by one where it is safetensors, and never by running what is pickled in it."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt") as opened:
                yield _Lazy(opened)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is not a whole safetensors file ({error}); copy it again") from error
        return
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} is not a whole checkpoint of tensors ({str(error).splitlines()[0]})") from error
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    yield {name: tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}


class _Lazy(Mapping[str, Tensor]):
    """An open safetensors file as a mapping."""

    def __init__(self, opened: Any) -> None:
        self.opened, self.names = opened, dict.fromkeys(opened.keys())

    def __getitem__(self, name: str) -> Tensor:
        return self.opened.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names
