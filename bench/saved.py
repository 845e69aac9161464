"""Bytes that autograd keeps for a backward pass, counted exactly."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Saved:
    """The memory of a tensor, for as long as the graph needs it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # a result that is saved would hold the graph that holds it, for ever


def saved_bytes(forward: Callable[[], Any]) -> int:
    """What ``forward`` has saved for its backward pass when it returns, in bytes.

    Memory that stood before (weights, inputs, what was computed beforehand) is not counted, views of one memory are
    counted once, and what a part of the graph saved that nothing needs any more is not there.  Inside a gradient
    checkpoint nothing is saved but its inputs; what its recomputation will save while the backward pass runs is that of
    the call without a checkpoint.
    """
    gc.collect()
    held = [each for each in gc.get_objects() if issubclass(type(each), Tensor)]  # so that none makes room for another
    before = {_memory(each) for each in held}
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def keep(tensor: Tensor) -> _Saved:
        kept = _Saved(tensor)
        saved.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        result = forward()  # holds the graph
    found = {_memory(kept.tensor): kept.tensor.untyped_storage().nbytes() for kept in saved}
    del result, held
    return sum(nbytes for memory, nbytes in found.items() if memory not in before)


def _memory(tensor: Tensor) -> int:
    if tensor.is_meta:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # a fake one, such as torch.compile leaves behind: it has none
        return 0
