"""Ranges named as the rooms are, and the trace files they end in."""

import dataclasses
import itertools
import json

import pytest
import torch
from torch import nn

from bench import machine, op_profile, ranges, steps, trace
from bench.generation import Generation, Implementation, Setup
from bench.names import PRESTO, REFERENCE

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def generation():
    with torch.no_grad():
        return Generation(Setup("tiny", 2, "fp32", 1.0, CPU))


def recorded(generation, side):
    model = getattr(generation, side)
    call = generation.steps(Implementation(model, generation.full))[0]
    with torch.no_grad(), op_profile.marked(model):
        return trace.record(call, CPU)


@pytest.mark.parametrize(("side", "room"), [(PRESTO, "presto_models.dit"), (REFERENCE, "presto_models.dit_reference")])
def test_every_call_of_a_module_is_a_range_inside_that_of_its_owner(generation, side, room):
    spans = trace.spans(recorded(generation, side))
    qkv = next(span for span in spans if span.name == f"{room}/block 3/self_attention/qkv")
    around = [span.name for span in qkv.within()]
    assert around[0] == f"{room}/block 3/self_attention"
    assert around[-3:] == [room, "presto_models.diffusion/edm", trace.STEP]
    assert any(span.parent is qkv and span.name == "aten::linear" for span in spans)


def test_operators_keep_their_own_names(generation):
    names = {span.name for span in trace.spans(recorded(generation, PRESTO)) if span.what == trace.OP}
    assert {"presto_kernels::seam", "presto_kernels::attention", "presto_kernels::edm_denoise"} <= names


def test_no_hook_is_left_behind_and_an_error_ends_its_range():
    class Broken(nn.Module):
        def forward(self):
            raise RuntimeError("broken")

    def call():
        with pytest.raises(RuntimeError, match="broken"):
            broken()
        torch.ones(3)

    broken = Broken()
    with ranges.rooms({"outer": broken}):
        spans = trace.spans(trace.record(call, CPU))
    behind = next(span for span in spans if span.name == "aten::ones")
    assert [span.name for span in behind.within()] == [trace.STEP]
    assert [span.name for span in spans].count("outer") == 1
    assert not nn.modules.module._global_forward_pre_hooks and not nn.modules.module._global_forward_hooks


def test_on_cuda_the_same_names_go_to_nvtx(monkeypatch):
    said = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", said.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: said.append("pop"))
    model = nn.Sequential(nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])}))
    with ranges.rooms({"room": model}, nvtx=True), pytest.raises(NotImplementedError):
        model[0]["layers"][0](torch.ones(2))
        model[0]()
    assert said == ["room/0/layer 0", "pop", "room/0", "pop"]


def test_a_written_trace_can_be_read_nests_and_rises(generation, tmp_path):
    path = tmp_path / "trace.json"
    sides = {side: recorded(generation, side) for side in (PRESTO, REFERENCE)}
    trace.write(path, sides)
    content = json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(text))
    events = content["traceEvents"]
    named = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    assert sorted(named.values()) == [PRESTO, REFERENCE]
    threads = {}
    for event in events:
        if event["ph"] == "X":
            threads.setdefault((event["pid"], event["tid"]), []).append(event)
    assert {named[pid] for pid, _ in threads} == {PRESTO, REFERENCE}
    for of_thread in threads.values():
        assert of_thread[0]["ts"] == 0
        assert all(a["ts"] <= b["ts"] for a, b in itertools.pairwise(of_thread))
        assert_nested(of_thread)
    again = trace.load(path)
    ours = [e for e in again if e["ph"] == "X" and named[e["pid"]] == PRESTO]
    assert [s.name for s in trace.spans(ours)] == [s.name for s in trace.spans(sides[PRESTO])]
    assert not list(tmp_path.glob(".*"))


def assert_nested(events):
    """Whatever begins inside another ends inside it, to the nanosecond."""
    ends = []
    for event in events:
        start, end = round(1000 * event["ts"]), round(1000 * event["ts"]) + round(1000 * event["dur"])
        while ends and ends[-1] <= start:
            ends.pop()
        assert not ends or end <= ends[-1], event
        ends.append(end)


def test_the_command_writes_one_generation_from_precomputation_to_stereo(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.stages._new_prompts", missing)
    monkeypatch.setattr("bench.decode.diffusers_module", missing)
    monkeypatch.setattr(machine, "measure_ceilings", lambda *_: machine.Ceilings(20.0, {"fp32": 0.1}))
    path = tmp_path / "trace.json"
    options = steps.StepsOptions(config="tiny", steps=2, dtype="fp32", device="cpu", seconds=0.1, profiles=1)
    assert steps.run(dataclasses.replace(options, trace=str(path))) == 0
    names = {event["name"] for event in trace.load(path)}
    assert {
        "presto_models.dit/precompute",
        "presto_models.diffusion/sample_pingpong",
        "presto_models.diffusion/edm",
        "presto_models.dit/block 7/mlp/up",
        "presto_models.dit_reference/block 7/mlp/up",
        "presto_models.autoencoders/decode",
        "presto_models.stereo/widen",
        "presto_kernels::seam",
    } <= names


def missing(*_):
    raise ImportError("not in this test")


def test_nan_in_the_profilers_file_becomes_null(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text('{"traceEvents": [{"ph": "X", "args": {"est. achieved occupancy %": NaN}}]}')
    assert trace.load(path)[0]["args"] == {"est. achieved occupancy %": None}
