"""Ranges named as the code's rooms are, for whatever profiler looks on: `presto_models.dit/block 3/self_attention/qkv`.

PyTorch's profiler gets a `record_function`; on CUDA the same name is an NVTX range, which Nsight Systems shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.profiler import record_function

from presto_models import EDM

BY_CLASS: dict[type, str] = {EDM: "presto_models.diffusion/edm"}
"""Modules that are made anew for every generation, and so are known by their class alone."""


@contextmanager
def named(name: str, *, nvtx: bool = False) -> Iterator[None]:
    """A range around the block, ended on an error too; `nvtx`: also one for Nsight (needs CUDA)."""
    with record_function(name):
        if nvtx:
            torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            if nvtx:
                torch.cuda.nvtx.range_pop()


@contextmanager
def rooms(roots: Mapping[str, nn.Module], *, nvtx: bool = False) -> Iterator[None]:
    """Until the end of the block, every call of a module in `roots` (room to module) is a range of its place's name.

    Hooks for all modules at once, so that the models themselves are not touched; a module outside of `roots` has no
    range, EDM apart.
    """
    names = {
        module: room + "".join(f"/{part}" for part in _place(path))
        for room, root in roots.items()
        for path, module in root.named_modules()
    }
    entered: list[tuple[nn.Module, AbstractContextManager[None]]] = []

    def enter(module: nn.Module, *_: object) -> None:
        name = names.get(module) or BY_CLASS.get(type(module))
        if name is not None:
            entered.append((module, named(name, nvtx=nvtx)))
            entered[-1][1].__enter__()

    def leave(module: nn.Module, *_: object) -> None:
        if entered and entered[-1][0] is module:
            entered.pop()[1].__exit__(None, None, None)

    # always_call: a forward that raises must not leave its range open.
    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _place(path: str) -> list[str]:
    """ "blocks.3.mlp.up" → ["block 3", "mlp", "up"]."""
    return re.sub(r"s?\.(\d+)", r" \1", path).split(".") if path else []
