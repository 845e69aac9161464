"""The search for a starting noise on a GPU: a step is one graph, asks the host nothing, and its memory stays flat."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "bench"))
from small_ditto import SIZES, pipeline_of

from bench import ditto_parts
from bench.__main__ import main
from bench.ditto_parts import PARTS, Staged
from bench.ditto_tasks import DITTO, DITTO_2, METHODS, Sizes, Task, check, restart
from bench.names import GRAPH
from bench.schema import read

ON_GPU = replace(SIZES, device="cuda")
KINDS = ("oobleck", "spectral")


@pytest.fixture
def task(monkeypatch, request):
    method, kind = getattr(request, "param", (DITTO, "spectral"))
    monkeypatch.setattr(Sizes, "pipeline", lambda self, method: pipeline_of(method, kind, "cuda"))
    return Task(method, ON_GPU)


EVERY = [(method, kind) for method in METHODS for kind in KINDS]


def stepped(search, steps):
    for _ in range(steps):
        restart(search)
        search.step()
    return search


def apart(one, other, start):
    """Mean distance of two noises over the mean way they have come."""
    return float((one - other).abs().mean() / (other - start).abs().mean())


@pytest.mark.parametrize("task", EVERY, indirect=True)
def test_both_sides_are_right(task):
    assert check(task, ["presto"]) == {}


@pytest.mark.parametrize("task", EVERY, indirect=True)
@pytest.mark.parametrize("name", ["presto", "reference"])
def test_a_captured_step_is_an_eager_one(task, name):
    """Up to the order of atomic sums, which Adam may turn into a step the other way where a gradient is nearly 0."""
    eager, captured = (stepped(task.search(name, eager=each), 6) for each in (True, False))
    assert captured._graph is not None and eager._graph is None
    assert apart(captured.noise, eager.noise, task.noise) < 0.05
    torch.testing.assert_close(captured.history, eager.history, rtol=1e-2, atol=0)
    torch.testing.assert_close(captured.best, eager.best, rtol=1e-2, atol=0)


@pytest.mark.parametrize("task", EVERY, indirect=True)
@pytest.mark.parametrize("eager", [True, False])
def test_a_step_asks_the_host_nothing(task, eager):
    search = stepped(task.search("presto", eager=eager), 3)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        stepped(search, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert search.noise.isfinite().all()


def test_a_replayed_step_allocates_nothing(task):
    search = stepped(task.search("presto"), 4)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()
    stepped(search, 3)
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    for name in ("num_device_alloc", "allocated_bytes.all.current", "reserved_bytes.all.current"):
        assert after.get(name) == before.get(name), name


def test_memory_stays_flat_over_the_walk(task):
    def peak(steps, checkpointed):
        search = stepped(task.changed(steps=steps).search("presto", eager=True, checkpointed=checkpointed), 2)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        stepped(search, 1)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    grown, kept = (peak(24, each) - peak(4, each) for each in (True, False))
    call = kept / 20
    assert call > 100_000
    assert grown < 0.5 * call + 20 * 8 * task.noise.nbytes


def test_the_parts_are_graphs_that_make_a_step(task):
    staged, search = Staged(task.search("presto")), task.search("presto", eager=True)
    timers = ditto_parts.timers(staged)
    staged.search.noise.data.copy_(task.noise)  # what warmed up has moved it
    for state in staged.search.optimizer.state[staged.search.noise].values():
        state.zero_()
    milliseconds = [timer(index) for _ in range(3) for index, timer in enumerate(timers)]
    assert len(milliseconds) == 3 * len(PARTS) and min(milliseconds) > 0
    assert apart(staged.search.noise, stepped(search, 3).noise, task.noise) < 0.05


@pytest.mark.parametrize("method", [DITTO, DITTO_2])
def test_the_command(method, monkeypatch, tmp_path):
    monkeypatch.setattr(Sizes, "pipeline", lambda self, method: pipeline_of(method, device="cuda"))
    file = tmp_path / "r.json"
    command = (
        f"ditto --device cuda --methods {method} --audio 0.2 --sampling-steps 3 --no-memory --rounds 3 --json {file}"
    )
    assert main(command.split()) == 0
    totals = {row["implementation"]: row for row in read(file).rows if row["part"] == "total"}
    assert set(totals) == {name + way for name in ("reference", "presto") for way in ("", GRAPH)}
    assert totals["presto_graph"]["ms_p50"] < 1.5 * totals["presto"]["ms_p50"]
