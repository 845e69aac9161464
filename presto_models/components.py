"""Which file holds each component of a checkpoint: one in its folder, or in that of the checkpoint it shares it with.

A distilled model shares its teacher's autoencoder and stereo module.  Its folder then holds diffusion.safetensors
alone, whose config names the teacher as ``base``:

    presto-tiny/      autoencoder.safetensors   diffusion.safetensors   stereo.safetensors
    presto-tiny-ls/                             diffusion.safetensors   (base: "presto-tiny")
"""

from __future__ import annotations

import os
from pathlib import Path

from presto_models.checkpoint import CheckpointError, find_folder, load_config

AUTOENCODER_FILE = "autoencoder.safetensors"
DIFFUSION_FILE = "diffusion.safetensors"
STEREO_FILE = "stereo.safetensors"
SHARED = (AUTOENCODER_FILE, STEREO_FILE)


def component(folder: str | os.PathLike[str], file: str) -> Path:
    """The file that holds a component of the checkpoint in ``folder``: its own, or else that of its base.

    Raises:
        FileNotFoundError: neither has it, or the base is not there.  CheckpointError: the base takes it from a base of
        its own, or is the folder itself.
    """
    found = find_component(folder, file)
    if found is None:
        base, what = base_of(folder), Path(file).stem
        there = "" if base is None else f", nor in its base {find_base(folder, base)}: copy {file} into one of them"
        raise FileNotFoundError(f"no {what} at {Path(folder) / file}{there}")
    return found


def find_component(folder: str | os.PathLike[str], file: str) -> Path | None:
    """As :func:`component`; None where neither has it."""
    own = Path(folder) / file
    base = None if own.is_file() else base_of(folder)
    if base is None:
        return own if own.is_file() else None
    there = find_base(folder, base)
    if (there / file).is_file():
        return there / file
    second = base_of(there)
    if second is not None:
        raise CheckpointError(
            f"{folder} takes {file} from its base {base!r}, which takes it from a base of its own, {second!r}; a base "
            f"must hold what it lends: save the checkpoint in {folder} again with {second!r} as its base"
        )
    return None


def component_files(folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Every file the checkpoint in ``folder`` is made of, its base's too, sorted by name; their hashes identify it."""
    found = (find_component(folder, file) for file in (AUTOENCODER_FILE, DIFFUSION_FILE, STEREO_FILE))
    return tuple(path for path in found if path is not None)


def base_of(folder: str | os.PathLike[str]) -> str | None:
    """The ``base`` in the config of the diffusion model in ``folder``, unresolved; None without one."""
    path = Path(folder) / DIFFUSION_FILE
    return load_config(path, kind="diffusion").get("base") if path.is_file() else None


def lender(name: str | os.PathLike[str]) -> str:
    """The ``base`` of a checkpoint that is to have the components of ``name``: its name, or the whole path of a folder;
    where ``name`` has them from a base of its own, that one."""
    folder = find_folder(name)
    second = base_of(folder)
    if second is not None and not any((folder / file).is_file() for file in SHARED):
        local = folder / second
        return str(local.resolve()) if local.is_dir() else second
    return str(folder.resolve()) if Path(name).is_dir() else str(name)


def find_base(folder: str | os.PathLike[str], base: str) -> Path:
    """The folder of ``base``, as the checkpoint in ``folder`` names it: a folder relative to that one or absolute, a
    shipped checkpoint, or a hub id, of which what can be shared is downloaded.

    Raises:
        FileNotFoundError: there is none.  CheckpointError: the hub did not give it, or it is ``folder`` itself.
    """
    try:
        there = find_folder(base, files=SHARED, beside=folder)
    except (FileNotFoundError, CheckpointError) as error:
        raise type(error)(
            f"{folder} shares components with its base {base!r}, which is neither the folder {Path(folder) / base} nor "
            f"one that ships or that the hub gives ({error}); put the base there, or copy its "
            f"{' and '.join(SHARED)} into {folder}"
        ) from error
    if there.resolve() == Path(folder).resolve():
        raise CheckpointError(f"{folder} names itself as its base; save it again without a base")
    return there
