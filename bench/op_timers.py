"""Timers for one op: a forward or a backward, called eagerly or replayed from a CUDA graph over rotating input sets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench import cuda, measure

Outputs = tuple[Tensor, ...]
Function = Callable[..., Outputs]


def forward(function: Function, sets: Sequence[Outputs], mode: str, device: torch.device) -> measure.Measure:
    """Times `function(*inputs)`; mode "graph" replays over all sets, mode "call" calls it on the first."""
    calls = [functools.partial(function, *inputs) for inputs in sets]
    for call in calls:
        call()
    if mode == "graph":
        return cuda.graph_timer(calls)
    if device.type == "cuda":
        return cuda.event_timer(calls[0], repeats=20)
    return measure.cpu_timer(calls[0], repeats=measure.repeats_for(calls[0], least_ms=2.0))


def backward(function: Function, sets: Sequence[Outputs], mode: str, device: torch.device) -> measure.Measure:
    """Times the gradients of `function(*inputs)` in every input, for random output gradients, without the forward."""
    # New leaves on the same storage: autograd remembers the stream a leaf was first used on.
    sets = [tuple(t.detach().requires_grad_() for t in inputs) for inputs in sets]
    forwards = [functools.partial(function, *inputs) for inputs in sets]
    backwards = [
        functools.partial(_gradients, inputs, random_grads(call(), seed))
        for seed, (call, inputs) in enumerate(zip(forwards, sets, strict=True))
    ]
    if mode == "graph":
        return cuda.backward_graph_timer(forwards, backwards)
    outputs: list[Outputs] = []

    def prepare() -> None:
        outputs[:] = [forwards[0]()]

    def call() -> None:
        backwards[0](outputs.pop())

    if device.type == "cuda":
        return cuda.event_timer(call, prepare=prepare, repeats=5)
    return measure.cpu_timer(call, prepare=prepare, repeats=3)


def random_grads(outputs: Sequence[Tensor], seed: int, dtype: torch.dtype | None = None) -> Outputs:
    """Output gradients of a backward: random, the same on every call, rounded to `dtype` (or each output's own)."""
    random = torch.Generator(outputs[0].device).manual_seed(seed)
    return tuple(
        torch.randn(y.shape, generator=random, device=y.device).to(dtype or y.dtype).to(y.dtype) for y in outputs
    )


def _gradients(inputs: Outputs, grads: Outputs, outputs: Outputs) -> Outputs:
    return torch.autograd.grad(outputs, inputs, grads)
