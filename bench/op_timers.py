"""Timers for one op: a forward or a backward, called eagerly or replayed from a CUDA graph, inputs cold or warm."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import cuda, measure

Outputs = tuple[Tensor, ...]
Function = Callable[..., Outputs]

GRAPH, GRAPH_WARM, CALL, CALL_COLD = "graph", "graph, L2 warm", "call", "call, cold"
"""How an op is timed: replayed in a CUDA graph, where each call takes the next of many input sets (what it reads is not
in the L2) or always the same (it is); called from Python on one set, or on a CPU on the next of many."""


@dataclass(frozen=True)
class Timed:
    """A timer of one op, and a way to see what it times.

    Attributes:
        measure: milliseconds a call.
        once: the index of an input set to the results on it, made in the way that is timed.
        tensors: for every input set all that the results depend on: the inputs and, for a backward, the outputs'
            gradients.  What is written into them is what is timed from then on.
    """

    measure: measure.Measure
    once: Callable[[int], Outputs]
    tensors: Sequence[Outputs]


def forward(
    function: Function,
    sets: Sequence[Outputs],
    mode: str,
    device: torch.device,
    *,
    repeats: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timed:
    """Times `function(*inputs)`; `repeats`: calls in a sample of mode "call", as many as the clock needs without it."""
    copies, sets = len(sets), _distinct(sets, mode)
    calls = [functools.partial(function, *inputs) for inputs in sets]
    for call in calls:
        call()
    if mode in (GRAPH, GRAPH_WARM):
        replay = cuda.graph_timer(calls) if mode == GRAPH else cuda.graph_timer(calls * copies, keep=False)
        return Timed(replay, replay.once, sets)
    if mode == CALL_COLD:
        turns, count = itertools.cycle(calls), len(calls)
        passes = max(1, round((repeats or measure.repeats_for(calls[0], least_ms=2.0, clock=clock)) / count))
        timer = measure.cpu_timer(lambda: next(turns)(), repeats=passes * count, clock=clock)
        return Timed(timer, lambda index: calls[index](), sets)
    if device.type == "cuda":
        timer = cuda.event_timer(calls[0], repeats=repeats or 20)
    else:
        repeats = repeats or measure.repeats_for(calls[0], least_ms=2.0, clock=clock)
        timer = measure.cpu_timer(calls[0], repeats=repeats, clock=clock)
    return Timed(timer, lambda index: calls[index](), sets)


def backward(
    function: Function,
    sets: Sequence[Outputs],
    mode: str,
    device: torch.device,
    *,
    repeats: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timed:
    """Times the gradients of `function(*inputs)` in every input, for random output gradients, without the forward.

    A warm graph's backwards share inputs and gradients; what else a forward saved is each one's own.
    """
    copies = len(sets) if mode == GRAPH_WARM else 1
    # New leaves on the same storage: autograd remembers the stream a leaf was first used on.
    sets = [tuple(t.detach().requires_grad_() for t in inputs) for inputs in _distinct(sets, mode)]
    forwards = [functools.partial(function, *inputs) for inputs in sets]
    grads = [random_grads(call(), seed) for seed, call in enumerate(forwards)]
    backwards = [functools.partial(_gradients, *pair) for pair in zip(sets, grads, strict=True)]
    tensors = [(*inputs, *own) for inputs, own in zip(sets, grads, strict=True)]
    if mode in (GRAPH, GRAPH_WARM):
        replay = cuda.backward_graph_timer(forwards * copies, backwards * copies)
        return Timed(replay, replay.once, tensors)
    outputs: list[Outputs] = []

    def prepare() -> None:
        outputs[:] = [forward() for forward in forwards]

    def call() -> None:
        for gradients, output in zip(backwards, outputs, strict=True):
            gradients(output)
        outputs.clear()

    def once(index: int) -> Outputs:
        return backwards[index](forwards[index]())

    if device.type == "cuda":
        return Timed(cuda.event_timer(call, prepare=prepare, repeats=repeats or 5), once, tensors)
    count = len(sets)
    timer = measure.cpu_timer(call, prepare=prepare, repeats=repeats or (1 if count > 1 else 3), clock=clock)
    return Timed(lambda part: timer(part) / count, once, tensors)


def random_grads(outputs: Sequence[Tensor], seed: int, dtype: torch.dtype | None = None) -> Outputs:
    """Output gradients of a backward: random, the same on every call, rounded to `dtype` (or each output's own)."""
    random = torch.Generator(outputs[0].device).manual_seed(seed)
    return tuple(
        torch.randn(y.shape, generator=random, device=y.device).to(dtype or y.dtype).to(y.dtype) for y in outputs
    )


def _distinct(sets: Sequence[Outputs], mode: str) -> Sequence[Outputs]:
    """Those of the input sets that a mode uses."""
    return sets if mode in (GRAPH, CALL_COLD) else sets[:1]


def _gradients(inputs: Outputs, grads: Outputs, outputs: Outputs) -> Outputs:
    return torch.autograd.grad(outputs, inputs, grads)
