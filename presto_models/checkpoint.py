"""A checkpoint is a folder of safetensors files, each one component with its config inside.

    presto-tiny/
      autoencoder.safetensors   diffusion.safetensors   stereo.safetensors (where there is one)   README.md (model card)

The header of each file holds ``{"format": "presto", "version": "1", "kind": ..., "config": json}``: what it is and what
rebuilds it.  Nothing is pickled.  What a folder shares with another is described in :mod:`presto_models.components`.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from presto_models.files import written_beside

FORMAT, VERSION = "presto", 1
SHIPPED = Path(__file__).parent / "checkpoints"
DEFAULT_CHECKPOINT = "presto-tiny-ls"  # what `generate` plays


class CheckpointError(ValueError):
    """A checkpoint is missing, cut short, or not one of ours."""


def save_weights(
    path: str | os.PathLike[str], weights: Mapping[str, Tensor], *, kind: str, config: Mapping[str, Any]
) -> Path:
    """Write one component, beside ``path`` first and then renamed: a reader sees the old file or the new one.

    Args:
        weights: name to tensor, as ``state_dict()`` gives them; stored in their own dtypes.
        kind: what it is, ``"autoencoder"``, ``"diffusion"``, ``"stereo"``, ...
        config: what rebuilds the module; plain JSON values.

    Raises:
        OSError: the file cannot be written (a full disk too); what was there before is untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    header = {"format": FORMAT, "version": str(VERSION), "kind": kind, "config": json.dumps(dict(config))}
    with written_beside(path) as beside:
        try:
            save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, beside, metadata=header)
        except SafetensorError as error:  # what a full disk is to the library
            raise OSError(errno.EIO, str(error)) from error
    return path


def load_weights(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the config :func:`save_weights` wrote.

    Raises:
        FileNotFoundError: there is no such file.  CheckpointError: it is cut short, another project's, of a newer
        version, or of another kind.
    """
    with _opened(path, kind) as (file, config):
        return {name: file.get_tensor(name) for name in file.keys()}, config  # noqa: SIM118 not a mapping


def load_config(path: str | os.PathLike[str], *, kind: str) -> dict[str, Any]:
    """The config alone, of which only the file's header is read; raises as :func:`load_weights` does."""
    with _opened(path, kind) as (_, config):
        return config


@contextmanager
def _opened(path: str | os.PathLike[str], kind: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} is a safetensors file, but not one of presto's: its header has no config"
                )
            if int(header["version"]) > VERSION:
                raise CheckpointError(f"{path} has version {header['version']}, this presto reads up to {VERSION}")
            if header["kind"] != kind:
                raise CheckpointError(f"{path} holds a component of kind {header['kind']!r}, wanted {kind!r}")
            yield file, json.loads(header["config"])
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); download or copy it again") from error


def load_into(module: torch.nn.Module, weights: Mapping[str, Tensor], *, source: object) -> None:
    """``module.load_state_dict``, the weights cast to the module's dtypes, with an error that names what differs."""
    missing, unexpected = [], []
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in weights:
            missing.append(name)
        elif weights[name].shape != tensor.shape:
            got, wanted = tuple(weights[name].shape), tuple(tensor.shape)
            raise CheckpointError(f"{source}: {name} has shape {got}, the model wants {wanted}")
    unexpected = [name for name in weights if name not in own]
    if missing or unexpected:
        raise CheckpointError(
            f"{source} does not fit the model: missing {missing[:3]}{'...' if len(missing) > 3 else ''}, "
            f"not expected {unexpected[:3]}{'...' if len(unexpected) > 3 else ''}"
        )
    module.load_state_dict(dict(weights))


def find_folder(
    name: str | os.PathLike[str],
    *,
    files: Sequence[str] = ("*.safetensors", "*.json", "*.md"),
    beside: str | os.PathLike[str] | None = None,
) -> Path:
    """The folder of a checkpoint: one that ships with the package (by name), a local folder, or a hub id.

    A hub id (``owner/name``) is downloaded with ``huggingface_hub``, which keeps it in its cache; of it, what fits
    one of the patterns in ``files``.  A relative path starts at ``beside``; None: the current folder.
    """
    folder = Path(name) if beside is None else Path(beside) / name
    if folder.is_dir():
        return folder
    shipped = SHIPPED / str(name)
    if isinstance(name, str) and "/" not in name and shipped.is_dir():
        return shipped
    known = sorted(path.name for path in SHIPPED.iterdir() if path.is_dir()) if SHIPPED.is_dir() else []
    if isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/")):
        try:
            from huggingface_hub import snapshot_download
        except ImportError as error:
            raise ImportError("a hub id needs huggingface_hub: pip install 'presto-kernels[models]'") from error
        try:
            return Path(snapshot_download(name, allow_patterns=list(files)))
        except Exception as error:
            raise CheckpointError(
                f"{name!r} is no folder here, and the hub did not give it: {error}; shipped are {known}"
            ) from error
    raise FileNotFoundError(f"no checkpoint {str(name)!r}: not a folder, and shipped are {known}")
