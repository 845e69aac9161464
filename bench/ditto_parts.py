"""A step of the search in parts, so that one sees what bounds it.

Between two parts the tensor that connects them is cut off from its gradient, and the gradient is handed over by hand:
the work is that of :meth:`presto_models.ditto.search.Search.step` but for its bookkeeping, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench import cuda, measure
from presto_models.ditto.scene import Made
from presto_models.ditto.search import Search

PARTS = (
    "walk",
    "decoder",
    "feature",
    "feature backward",
    "decoder backward",
    "recompute + walk backward",
    "adam",
)


class Staged:
    """One step of a search, part by part; each call must follow the one before it."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.x = self.latents = self.audio = self.heard = self.total = self.gradient = search.noise

    @property
    def calls(self) -> tuple[Callable[[], None], ...]:
        """In the order of ``PARTS``."""
        return (
            self._walk,
            self._decode,
            self._feature,
            self._feature_backward,
            self._decode_backward,
            self._walk_backward,
            self._adam,
        )

    def step(self) -> None:
        """All parts in turn."""
        for call in self.calls:
            call()

    def _walk(self) -> None:
        self.x = self.search.walk(self.search.noise)

    def _decode(self) -> None:
        self.latents = self.x.detach().requires_grad_()
        self.audio = self.search.scene.decode(self.latents)

    def _feature(self) -> None:
        self.heard = self.audio.detach().requires_grad_()
        made = Made(self.search.scene, self.latents.detach())
        made.audio = self.heard
        errors = torch.stack([bound.error(made).float() for bound in self.search.bound])
        self.total = (self.search.weights * errors).sum()

    def _feature_backward(self) -> None:
        self.gradient = _gradient(self.total, self.heard)

    def _decode_backward(self) -> None:
        self.gradient = _gradient(self.audio, self.latents, self.gradient)

    def _walk_backward(self) -> None:
        self.gradient = _gradient(self.x, self.search.noise, self.gradient)

    def _adam(self) -> None:
        self.search.noise.grad = self.gradient
        self.search.optimizer.step()


def timers(staged: Staged) -> list[measure.Measure]:
    """Milliseconds of each part; on CUDA each is a graph of its own, to be replayed in turn."""
    if staged.search.noise.device.type != "cuda":
        return [measure.cpu_timer(call) for call in staged.calls]
    cuda.warm_up(staged.step)
    pool = torch.cuda.graph_pool_handle()
    return [cuda.Replay(*_captured(call, pool), held=staged) for call in staged.calls]


def _captured(call: Callable[[], None], pool: object) -> tuple[torch.cuda.CUDAGraph, int, list[object]]:
    graph, results = cuda.capture([call], pool=pool)
    return graph, 1, results


def _gradient(output: Tensor, of: Tensor, given: Tensor | None = None) -> Tensor:
    return torch.autograd.grad(output, of, given)[0]
