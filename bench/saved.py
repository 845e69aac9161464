"""Bytes that autograd keeps for a backward pass, counted exactly."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], Any]) -> int:
    """What ``forward`` has saved for its backward pass when it returns, in bytes.

    Memory that stood before (weights, inputs, what was computed beforehand) is not counted, and views of one memory are
    counted once.  Inside a gradient checkpoint nothing is saved but its inputs; what its recomputation will save while
    the backward pass runs is that of the call without a checkpoint.
    """
    gc.collect()
    held = [each for each in gc.get_objects() if issubclass(type(each), Tensor)]  # so that none makes room for another
    before = {_memory(each) for each in held}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        memory = _memory(tensor)
        if memory not in before:
            found[memory] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()  # holds the graph, so that no memory is used twice
    total = sum(found.values())
    del result, held
    return total


def _memory(tensor: Tensor) -> int:
    return 0 if tensor.is_meta else tensor.untyped_storage().data_ptr()
