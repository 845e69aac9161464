"""Timing on a GPU: events around eager calls, and replays of CUDA graphs over inputs that do not fit the L2 cache.

Device work is asynchronous and a kernel of ten microseconds is shorter than its launch, so an eager timing of an op
measures Python. A graph of many calls measures the kernels; each call takes the next of several input sets, together
more than three times the L2, so that no call finds its inputs in the cache as it would not in a model. Outputs are kept
alive through the capture, so writes rotate as well.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.measure import Measure

Call = Callable[[], object]
MOST_SETS = 512


def input_sets(bytes_per_call: int, device: torch.device) -> int:
    """How many input sets it takes to pass through more than three times the L2 cache of a GPU; 1 on a CPU."""
    if device.type != "cuda":
        return 1
    return sets_beyond(torch.cuda.get_device_properties(device).L2_cache_size, bytes_per_call)


def sets_beyond(cache_bytes: int, bytes_per_call: int) -> int:
    """How many input sets pass through more than three times this cache; two at least."""
    return min(MOST_SETS, max(2, math.ceil(3 * cache_bytes / max(bytes_per_call, 1)) + 1))


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def event_timer(call: Call, *, prepare: Call | None = None, repeats: int = 1) -> Measure:
    """Milliseconds a call between two events, launch gaps included; `prepare` runs before each call, untimed."""
    start, end = _events()

    def measure(part: int = 0) -> float:
        total = 0.0
        batch = repeats if prepare is None else 1
        for _ in range(repeats // batch):
            if prepare is not None:
                prepare()
            torch.cuda.synchronize()
            start.record()
            for _ in range(batch):
                call()
            end.record()
            end.synchronize()
            total += start.elapsed_time(end)
        return total / repeats

    return measure


def event_and_wall(
    call: Call, *, repeats: int = 20, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Milliseconds of a batch of calls by two events around it, and by the clock until the device is idle.

    What a call queues on a stream that the current one does not wait for is in the second alone.
    """
    start, end = _events()
    torch.cuda.synchronize()
    started = clock()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end), (clock() - started) * 1e3


class EventMarks:
    """:class:`measure.Marks` on the device's own time: events in the stream, waited for only at the end."""

    def __init__(self) -> None:
        self.events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        self.events.append(torch.cuda.Event(enable_timing=True))
        self.events[-1].record()

    def between(self) -> list[float]:
        torch.cuda.synchronize()
        return [before.elapsed_time(after) for before, after in itertools.pairwise(self.events)]


def capture(calls: Sequence[Call], *, pool: Any = None, keep: bool = True) -> tuple[torch.cuda.CUDAGraph, list[object]]:
    """All calls, one after another, in one CUDA graph, and what they returned: memory that each replay fills.

    keep: without it only the last result is held, and each call may write where the one before it wrote.
    """
    graph = torch.cuda.CUDAGraph()
    results: list[object] = []
    with torch.cuda.graph(graph, pool=pool):
        for call in calls:
            if not keep:
                results.clear()
            results.append(call())
    return graph, results


def warm_up(call: Call, times: int = 3) -> None:
    """Runs `call` on a side stream before a capture: lazy initialisation and compilation must not fall into it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


@dataclass(frozen=True)
class Replay:
    """Milliseconds a call of a captured graph; `once` replays it and gives the results of one of its calls.

    Attributes:
        before: a graph that is replayed first and not timed.
        held: what else the graph reads and writes; it must live as long.
    """

    graph: torch.cuda.CUDAGraph
    calls: int
    results: Sequence[Any]
    before: torch.cuda.CUDAGraph | None = None
    held: object = None
    events: tuple[torch.cuda.Event, torch.cuda.Event] = field(default_factory=lambda: _events())

    def __call__(self, part: int = 0) -> float:
        start, end = self.events
        if self.before is not None:
            self.before.replay()
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / self.calls

    def once(self, index: int) -> Any:
        self(0)
        return self.results[index]


def graph_timer(calls: Sequence[Call], *, keep: bool = True) -> Replay:
    """Milliseconds a call inside one CUDA graph that makes all `calls` in turn; `keep` as for :func:`capture`."""
    warm_up(calls[0])
    graph, results = capture(calls, keep=keep)
    return Replay(graph, len(calls), results)


def backward_graph_timer(forwards: Sequence[Call], backwards: Sequence[Callable[[Any], object]]) -> Replay:
    """Milliseconds a backward inside one CUDA graph of backwards, each given what its forward returned.

    The forwards are a graph of their own, replayed before and not timed.
    """
    warm_up(lambda: backwards[0](forwards[0]()))
    pool = torch.cuda.graph_pool_handle()
    forward_graph, outputs = capture(forwards, pool=pool)
    pairs = zip(backwards, outputs, strict=True)
    graph, gradients = capture([functools.partial(backward, output) for backward, output in pairs], pool=pool)
    return Replay(graph, len(forwards), gradients, before=forward_graph, held=outputs)
