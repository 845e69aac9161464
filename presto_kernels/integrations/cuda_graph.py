"""``capture``: a model's forward as one CUDA graph for each shape it is called with.

Where a step is short, the launches of its kernels decide (Stable Audio 3 small: 460 ms from PyTorch, 22 ms as one
graph), and a graph launches all of them at once.  A graph is of exact shapes, and reads and writes fixed memory: inputs
are copied in, and outputs are copied out so that the next call does not write over them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from presto_kernels.integrations.swapping import Accelerated

WARM_UP = 3  # calls before a capture: lazy allocations, tables and library handles come into being


class Captured:
    """What :func:`capture` returns: call it as the model."""

    def __init__(self, model: nn.Module, graphs: int) -> None:
        self.model, self.graphs = model, graphs
        self._kept: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._pool: Any = None

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not any(t.is_cuda for t in tensors):
            return self.model(*args, **kwargs)
        key = (str(spec), self.model.training, tuple(_description(leaf) for leaf in leaves))
        graph = self._kept.get(key)
        if graph is None or graph.is_stale():
            graph = self._kept[key] = self._record(leaves, spec)
        self._kept.move_to_end(key)
        while len(self._kept) > self.graphs:
            self._kept.popitem(last=False)
        return graph.replay(tensors)

    def reset(self) -> None:
        """Forget all graphs: after weights were replaced (not merely written into), say."""
        self._kept.clear()
        self._pool = None

    def _record(self, leaves: list[Any], spec: pytree.TreeSpec) -> _Graph:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        static = [leaf.clone() if isinstance(leaf, Tensor) and leaf.is_cuda else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(static, spec)
        return _Graph(self.model, args, kwargs, [t for t in static if isinstance(t, Tensor)], self._pool)


class _Graph:
    """One shape's graph, and the memory it reads and writes."""

    def __init__(self, model: nn.Module, args: Any, kwargs: Any, inputs: list[Tensor], pool: Any) -> None:
        self.inputs = inputs
        accelerated = [module for module in model.modules() if isinstance(module, Accelerated)]
        self._sessions = [
            module._presto for module in accelerated
        ]  # hold the rotary tables, whatever becomes of the model
        self._folding = [m for m in accelerated if type(m)._presto_reads is not Accelerated._presto_reads]

        def run() -> Any:
            return model(*args, **kwargs)

        device = next(t.device for t in inputs if t.is_cuda)
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    run()
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=pool):
                self.output = run()
        self._folded = [module._presto_reads() for module in self._folding]

    def is_stale(self) -> bool:
        """Whether folded weights have been replaced since; those written in place are folded anew in place."""
        return self._folded != [module._presto_reads() for module in self._folding]

    def replay(self, tensors: list[Tensor]) -> Any:
        for mine, given in zip(self.inputs, tensors, strict=True):
            if mine.is_cuda:
                mine.copy_(given)
        self.graph.replay()
        return pytree.tree_map_only(Tensor, Tensor.clone, self.output)


def _description(leaf: Any) -> Hashable:
    """What a graph is recorded for: the shape of a tensor on the device, the value of anything else."""
    if isinstance(leaf, Tensor):
        if not leaf.is_cuda:  # read while recording, so that its values are part of the graph
            return "host", leaf.dtype, tuple(leaf.shape), tuple(leaf.flatten().tolist())
        return leaf.dtype, tuple(leaf.shape), tuple(leaf.stride()), leaf.device.index, leaf.requires_grad
    return leaf if isinstance(leaf, Hashable) else repr(leaf)


def capture(model: nn.Module, *, graphs: int = 4) -> Captured:
    """A callable that runs a model's forward, without gradients, as one CUDA graph for each shape it is called with.

    The first call of a shape runs the model a few times and records it; later ones copy their inputs in, replay, and
    return new tensors.  Recording needs a model that asks the device nothing in its forward: an accelerated one asks
    nothing of its own; of the open models, guidance in an interval and LoRA do (``bool(sigma[0] <= ...)``).  Weights
    written in place are seen; :meth:`Captured.reset` after they were replaced.  On a CPU the model is called as it is.

    Args:
        model: accelerated or not; in eval mode, as dropout would draw the same at every replay.
        graphs: how many shapes are kept, the most recent ones; all share one pool of memory.

    Raises:
        TypeError: model is no module.  ValueError: graphs < 1, or the model is in training mode.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"capture: model must be a torch.nn.Module, got {type(model).__name__}")
    if graphs < 1:
        raise ValueError(f"capture: graphs must be at least 1, got {graphs}")
    if model.training:
        raise ValueError("capture: model is in training mode; call model.eval() first")
    return Captured(model, graphs)
