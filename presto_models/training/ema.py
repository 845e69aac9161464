"""An exponential moving average of weights, in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from presto_models.training.sharding import gather, local, shard_like


class EMA:
    """shadow <- shadow + (1 - d) (weight - shadow),   d = min(decay, (1 + n) / (10 + n)) after n updates.

    The rising d forgets the random start (TensorFlow's ExponentialMovingAverage with num_updates).  The shadow is laid
    out as the parameters are: a sharded weight has a sharded shadow.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = dict(module.named_parameters())
        self.shadow = {name: weight.detach().float().clone() for name, weight in self._parameters.items()}

    def decay_at(self, updates: int) -> float:
        """d after this many updates."""
        return min(self.decay, (1 + updates) / (10 + updates))

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """One step towards the weights as they are, the ``updates``-th (from 0)."""
        weights = [local(weight).float() for weight in self._parameters.values()]
        torch._foreach_lerp_([local(s) for s in self.shadow.values()], weights, 1 - self.decay_at(updates))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module runs with the averaged weights inside; its own come back bitwise afterwards."""
        own = [local(weight).detach().clone() for weight in self._parameters.values()]
        self._put([local(s) for s in self.shadow.values()])
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        torch._foreach_copy_([local(weight).detach() for weight in self._parameters.values()], values)

    def state_dict(self) -> dict[str, Tensor]:
        """Whole tensors; with shards every process must call it."""
        return {name: gather(shadow) for name, shadow in self.shadow.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Whole tensors back into the shadow's own layout."""
        for name, shadow in self.shadow.items():
            shadow.copy_(shard_like(state[name], shadow))
