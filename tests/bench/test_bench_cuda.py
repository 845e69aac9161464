"""What of the GPU timing a machine without a GPU can show: how many input sets rotate, and what a replay measures.

Streams, events and graphs are stood in for by a clock that moves when a planted kernel runs.
"""

import types

import pytest
import torch

from bench import cuda

NOW = 0.0
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class Event:
    def __init__(self, enable_timing):
        self.time = None

    def record(self):
        self.time = NOW

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return end.time - self.time


class Graph:
    def __init__(self, calls):
        self.calls = calls

    def replay(self):
        for call in self.calls:
            call()


def capture(calls, *, pool=None, keep=True):
    results = [call() for call in calls]
    return Graph(calls), results if keep else results[-1:]


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(L2_cache_size=60_000_000)
    )
    monkeypatch.setattr(cuda, "warm_up", lambda call: call())
    monkeypatch.setattr(cuda, "capture", capture)


def kernel(milliseconds, ran, name):
    def run(*_):
        global NOW
        NOW += milliseconds
        ran.append(name)
        return name

    return run


@pytest.mark.parametrize("size", [1_000, 500_000, 11_300_000, 45_000_000, 500_000_000])
def test_inputs_rotate_through_more_than_three_times_the_cache(size):
    sets = cuda.input_sets(size, CUDA)
    assert 2 <= sets <= cuda.MOST_SETS
    assert sets * size > 3 * 60_000_000 or sets == cuda.MOST_SETS


def test_on_a_cpu_one_set_is_enough():
    assert cuda.input_sets(1000, CPU) == 1


def test_a_graph_makes_every_call_once_a_replay_and_the_time_is_of_one():
    ran = []
    measure = cuda.graph_timer([kernel(ms, ran, name) for name, ms in (("a", 1.0), ("b", 3.0))])
    ran.clear()
    assert measure(0) == pytest.approx(2.0)
    assert ran == ["a", "b"]


def test_a_backward_is_timed_without_the_forward_that_it_needs():
    ran, got = [], []
    forwards = [kernel(100.0, ran, f"forward {i}") for i in range(3)]
    spend = kernel(4.0, ran, "backward")
    measure = cuda.backward_graph_timer(forwards, [lambda output: (got.append(output), spend()) for _ in range(3)])
    assert got[-3:] == ["forward 0", "forward 1", "forward 2"]
    ran.clear()
    assert measure(0) == pytest.approx(4.0)
    assert ran == ["forward 0", "forward 1", "forward 2", *["backward"] * 3]


def test_events_measure_calls_without_what_prepares_them():
    ran = []
    assert cuda.event_timer(kernel(2.0, ran, "op"), repeats=10)(0) == pytest.approx(2.0)
    assert ran == ["op"] * 10
    ran.clear()
    measure = cuda.event_timer(kernel(2.0, ran, "backward"), prepare=kernel(50.0, ran, "forward"), repeats=2)
    assert measure(0) == pytest.approx(2.0)
    assert ran == ["forward", "backward"] * 2
