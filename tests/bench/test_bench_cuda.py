"""What of the GPU timing a machine without a GPU can show: how many input sets rotate, and what a replay measures.

Streams, events and graphs are stood in for by a clock that moves when a planted kernel runs.
"""

import contextlib
import types
import weakref

import pytest
import torch

from bench import checks, cuda, op_timers

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


def times_two(x):
    return (2 * x,)


def filled(value):
    return (torch.full((3,), value),)


@pytest.mark.parametrize("make", [op_timers.forward, op_timers.backward])
def test_a_cold_graph_takes_every_input_set_and_a_warm_one_the_same_each_time(make, monkeypatch):
    seen = []
    # A replay runs on memory; here it runs the calls again, on one autograd graph.
    kept = lambda inputs, grads, outputs: torch.autograd.grad(outputs, inputs, grads, retain_graph=True)  # noqa: E731
    monkeypatch.setattr(op_timers, "_gradients", kept)

    def op(x):
        seen.append(float(x.detach()[0]))
        return times_two(x)

    sets = [filled(1.0), filled(2.0), filled(3.0)]
    cold = make(op, sets, op_timers.GRAPH, CUDA)
    seen.clear()
    cold.measure(0)
    assert seen == [1.0, 2.0, 3.0]
    assert len(cold.tensors) == 3
    warm = make(op, sets, op_timers.GRAPH_WARM, CUDA)
    seen.clear()
    warm.measure(0)
    assert seen == [1.0, 1.0, 1.0]
    assert len(warm.tensors) == 1
    assert warm.tensors[0][0].data_ptr() == sets[0][0].data_ptr()


def test_a_warm_graph_holds_no_more_than_its_last_result():
    assert len(cuda.graph_timer([lambda: 1] * 5).results) == 5
    assert len(cuda.graph_timer([lambda: 1] * 5, keep=False).results) == 1


def test_a_capture_lets_go_of_each_result_before_the_next(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool: contextlib.nullcontext())
    alive = weakref.WeakSet()
    most = 0

    class Result:
        pass

    def call():
        nonlocal most
        made = Result()
        alive.add(made)
        most = max(most, len(alive))
        return made

    _, results = cuda.capture([call] * 4, keep=False)
    assert (len(results), most) == (1, 1)
    _, results = cuda.capture([call] * 4)
    assert len(results) == 4


def test_work_on_another_stream_shows_between_the_events_and_the_clock(monkeypatch):
    elsewhere = 0.0

    def synchronize(*_):
        global NOW
        nonlocal elsewhere
        NOW, elsewhere = NOW + elsewhere, 0.0

    def escaping():
        nonlocal elsewhere
        kernel(0.1, [], "launch")()
        elsewhere += 2.0

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    honest = cuda.event_and_wall(kernel(2.0, [], "op"), repeats=10, clock=lambda: NOW / 1e3)
    assert honest == pytest.approx((20.0, 20.0))
    checks.escapes("ours", *honest)
    event, wall = cuda.event_and_wall(escaping, repeats=10, clock=lambda: NOW / 1e3)
    assert (event, wall) == pytest.approx((1.0, 21.0))
    with pytest.raises(checks.Cheating, match="outside of the stream"):
        checks.escapes("ours", event, wall)
