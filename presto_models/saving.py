"""A pipeline to a folder: whole, or without what another checkpoint has already."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from presto_models.autoencoders import load_autoencoder, save_autoencoder
from presto_models.checkpoint import find_folder
from presto_models.components import AUTOENCODER_FILE, DIFFUSION_FILE, SHARED, STEREO_FILE, base_of
from presto_models.diffusion_config import save_diffusion
from presto_models.stereo import load_stereo, save_stereo

if TYPE_CHECKING:
    from presto_models.pipeline import PrestoPipeline


def save_pipeline(
    pipeline: PrestoPipeline, folder: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None
) -> Path:
    """See :meth:`presto_models.PrestoPipeline.save_pretrained`."""
    folder = Path(folder)
    there = None if base is None else _lender(base, folder)
    shared = () if there is None else _shared(pipeline, there)
    if there is not None and shared and pipeline.stereo is None and (there / STEREO_FILE).is_file():
        raise ValueError(
            f"base {str(base)!r} has a stereo module and this pipeline has none, so it would gain that one; save it "
            "without a base"
        )
    if AUTOENCODER_FILE not in shared:
        save_autoencoder(folder / AUTOENCODER_FILE, pipeline.autoencoder)
    if pipeline.stereo is not None and STEREO_FILE not in shared:
        save_stereo(pipeline.stereo, folder / STEREO_FILE)
    config = replace(pipeline.config, base=_named(base, folder) if base is not None and shared else None)
    save_diffusion(folder / DIFFUSION_FILE, config, pipeline.dit, pipeline.conditioner)
    # What an earlier checkpoint left here would stand before the base's.
    for file in SHARED:
        if file in shared or (file == STEREO_FILE and pipeline.stereo is None):
            (folder / file).unlink(missing_ok=True)
    return folder


def _lender(base: str | os.PathLike[str], folder: Path) -> Path:
    there = find_folder(base)
    if there.resolve() == folder.resolve():
        raise ValueError(f"base must be another checkpoint than the one that is written, got {str(base)!r}")
    second = base_of(there)
    if second is not None:
        raise ValueError(f"base {str(base)!r} itself shares components with {second!r}: give that as the base")
    return there


def _shared(pipeline: PrestoPipeline, there: Path) -> tuple[str, ...]:
    """Which of this pipeline's components ``there`` has too, with equal configs and weights."""
    loads: dict[str, tuple[nn.Module | None, Callable[[Path], nn.Module]]] = {
        AUTOENCODER_FILE: (pipeline.autoencoder, load_autoencoder),
        STEREO_FILE: (pipeline.stereo, load_stereo),
    }
    return tuple(
        file
        for file, (own, load) in loads.items()
        if own is not None and (there / file).is_file() and _equal(own, load(there / file))
    )


def _equal(own: nn.Module, other: nn.Module) -> bool:
    """Whether ``other`` is ``own`` once it has the dtype it was loaded in."""
    if type(own) is not type(other) or own.config != other.config:
        return False
    weights = other.state_dict()
    return all(torch.equal(t.cpu(), weights[name].to(t.dtype)) for name, t in own.state_dict().items())


def _named(base: str | os.PathLike[str], folder: Path) -> str:
    """``base`` as a config in ``folder`` names it: a folder by the way from there, a name or a hub id as it is."""
    path = Path(base)
    if path.is_dir() and not path.is_absolute():
        return os.path.relpath(path.resolve(), folder.resolve())
    return str(base)
