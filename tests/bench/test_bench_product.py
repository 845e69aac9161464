"""The product's stages, its totals and its cold start: by the tiny model, a clock that moves by hand, and stand-ins for
what needs a GPU or a process of its own.
"""

import contextlib
import dataclasses
import itertools
import json
import types

import numpy as np
import pytest
import torch

from bench import cold, cuda, latency, machine, measure, product_run, product_stages, subprocesses, telemetry
from bench.__main__ import main
from bench.cli import BadOption
from bench.product_stages import GRAPH, MONO, TOTAL, WARM, Spec, Timed
from bench.results import Report, row_key

SPEC = Spec("tiny", None, "cpu", "fp32", 2, None, "default", None)


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    monkeypatch.setattr(
        machine, "measure_ceilings", lambda device, dtypes: machine.Ceilings(30.0, dict.fromkeys(dtypes, 0.4))
    )


@pytest.fixture(scope="module")
def product():
    return product_stages.load(SPEC)


def ticking(step=1.0):
    """A clock on which a second passes between two looks."""
    count = itertools.count()
    return lambda: next(count) * step


def timed_by(product, batch, rounds=2, **given):
    timed = Timed(product, batch, **given)
    samples = measure.interleave({str(batch): timed}, parts=len(timed.parts), rounds=rounds, warmup=0)
    return timed, samples


@pytest.mark.parametrize("batch", [1, 2])
def test_every_stage_is_timed_once_and_the_samples_of_a_cpu_are_added(product, batch):
    timed, samples = timed_by(product, batch, clock=ticking())
    rows = timed.rows(samples)
    by_stage = {row["stage"]: row for row in rows if "kind" not in row}
    assert list(by_stage) == ["prompt", "prepare", "noise", "step 0", "step 1", "decode", "stereo", "total"]
    assert all(by_stage[name]["ms_p50"] == 1000 * batch for name in by_stage if name not in ("total", "prompt"))
    assert by_stage["prompt"]["ms_p50"] == 1000  # all prompts in one call
    # The clock was looked at around everything, around the prompt, and after each stage of each sample.
    assert by_stage["total"]["ms_p50"] == 1000 * (6 * batch + 3)
    mono = next(row for row in rows if row.get("kind") == "mono")
    assert mono["ms_p50"] == by_stage["total"]["ms_p50"] - by_stage["stereo"]["ms_p50"]
    assert all(row["mode"] == WARM and row["implementation"] == "presto" and row["rounds"] == 2 for row in rows)
    assert len({row_key(row) for row in rows}) == len(rows)


def test_a_step_tells_its_noise_level_and_its_blocks(product):
    timed, samples = timed_by(product, 1, rounds=1)
    steps = [row for row in timed.rows(samples) if row["stage"].startswith("step")]
    assert [row["sigma"] for row in steps] == pytest.approx([80, 2.52], rel=0.01)
    assert [row["budget"] for row in steps] == product.described()["blocks"]
    assert steps[0]["budget"] < steps[1]["budget"] < 8
    everything = product_stages.load(dataclasses.replace(SPEC, layers="all", steps=None))
    assert everything.described()["blocks"] == [8, 8, 8, 8]


def test_the_prompts_are_new_ones_each_time(product):
    embedded = []
    with contextlib.ExitStack() as stack:
        hook = product.pipeline.conditioner.register_forward_pre_hook(lambda _, prompts: embedded.extend(prompts[0]))
        stack.callback(hook.remove)
        timed_by(product, 2)
        product.generate(2)
    assert len(embedded) == len(set(embedded)) == 6


def test_without_a_text_encoder_the_rest_is_timed(product, monkeypatch):
    random = product_stages.PrestoPipeline.random

    def no_encoder(*args, text="minilm", **kwargs):
        if text is not None:
            raise ImportError("transformers is not installed\nmore")
        return random(*args, text=text, **kwargs)

    monkeypatch.setattr(product_stages.PrestoPipeline, "random", no_encoder)
    made = product_stages.load(SPEC)
    assert made.no_prompt == "transformers is not installed"
    timed, samples = timed_by(made, 1)
    assert "prompt" not in {row["stage"] for row in timed.rows(samples)}
    assert made.generate(2).shape == product.generate(2).shape
    assert timed.whole() > 0


def test_on_a_gpu_events_watch_the_stages_and_the_graph_is_timed_as_a_whole(product, monkeypatch):
    now = [0.0]

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            self.time = now[0]

        def elapsed_time(self, end):
            return (end.time - self.time) * 1e3

    def wait(seconds):
        now[0] += seconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    plan = product.plan(1)

    def engine(plan, conditioning, seeds, on_stage):
        for name in ("prepare", "noise", "step", "step", "decode", "stereo"):
            wait(0.5 if name == "step" else 0.125)
            on_stage(name)

    engine.capture = True
    pipeline = types.SimpleNamespace(device=torch.device("cuda"), engine=engine)
    made = types.SimpleNamespace(
        pipeline=pipeline,
        no_prompt=None,
        stereo=True,
        plan=lambda batch: plan,
        conditioning=lambda batch: wait(0.25),
        crop=lambda audio: None,
        generate=lambda batch, stereo=True: wait(0.0625 if stereo else 0.03125),
    )
    timed = Timed(made, 1, clock=lambda: now[0])
    assert timed.parts[-2:] == [(GRAPH, TOTAL), (GRAPH, MONO)]
    samples = measure.interleave({"1": timed}, parts=len(timed.parts), rounds=2, warmup=0)
    found = {part: samples.ms("1", index).tolist() for index, part in enumerate(timed.parts)}
    assert found[WARM, "prompt"] == [250.0, 250.0]
    assert found[WARM, "step 0"] == found[WARM, "step 1"] == [500.0, 500.0]
    assert found[WARM, "decode"] == [125.0, 125.0]
    assert found[WARM, TOTAL] == [1750.0, 1750.0] and found[WARM, MONO] == [1625.0, 1625.0]
    assert found[GRAPH, TOTAL] == [62.5, 62.5] and found[GRAPH, MONO] == [31.25, 31.25]


def test_graphs_of_all_sizes_are_kept_while_they_are_timed_in_turn():
    made = product_stages.load(SPEC)
    made.keep_graphs(6)
    assert made.pipeline.engine.max_graphs == 6
    made.keep_graphs(2)
    assert made.pipeline.engine.max_graphs == 6


def test_events_are_read_only_at_the_end(monkeypatch):
    order = []

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            order.append("record")

        def elapsed_time(self, end):
            order.append("read")
            return 1.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("wait"))
    marks = cuda.EventMarks()
    for _ in range(3):
        marks.mark()
    assert marks.between() == [1.0, 1.0]
    assert order == ["record"] * 3 + ["wait"] + ["read"] * 2


def test_timing_stops_when_the_median_is_known_and_not_before(product):
    rng = np.random.default_rng(0)

    def rounds(noise, interval, most=200):
        timed = Timed(product, 1)
        timed.parts = [(WARM, TOTAL)]
        samples = measure.interleave(
            {"1": lambda part: 100 * (1 + noise * rng.standard_normal())},
            rounds=most,
            min_rounds=2,
            warmup=0,
            enough=product_stages.settled([timed], interval),
        )
        return samples.ms("1", 0)

    quiet, noisy = rounds(0.001, 0.02), rounds(0.05, 0.02)
    assert len(quiet) == 6  # fewer give no interval
    assert 20 < len(noisy) < 200 and product_stages.half_width(noisy) <= 0.02
    assert product_stages.half_width(noisy[:-1]) > 0.02
    assert len(rounds(0.001, 0, most=30)) == 30


def test_energy_a_clip_is_that_of_a_window_over_its_clips(monkeypatch):
    class Sensor:
        name, period, joules = "fake", 1000.0, 0.0

        def read(self):
            return {"power_w": 100.0}

        def energy(self):
            return self.joules

        def fields(self, readings):
            return {}

    now, sensor = [0.0], Sensor()

    def generate(batch):
        now[0] += 0.75
        sensor.joules += 30 * batch

    device = torch.device("cpu")
    timed = types.SimpleNamespace(
        product=types.SimpleNamespace(pipeline=types.SimpleNamespace(device=device), generate=generate), batch=2
    )
    monkeypatch.setattr(telemetry, "watch", lambda device: telemetry.Watch(sensor))
    found = product_stages.energy(timed, clock=lambda: now[0])
    assert found == {"energy_j_per_clip": 30.0, "energy_clips": 6, "energy_from": "counter"}


def test_where_energy_is_unknown_nothing_runs_and_the_reason_is_kept(product, monkeypatch, tmp_path):
    from bench import telemetry_cpu

    monkeypatch.setattr(telemetry, "watch", lambda device: telemetry.Watch(telemetry_cpu.Linux(tmp_path)))
    found = product_stages.energy(Timed(product, 1))
    assert found["energy_j_per_clip"] is None and "RAPL" in found["no_energy"]


def test_cold_starts_have_caches_of_their_own_and_every_batch_its_memory():
    asked = []

    def call(function, fields, batch, calls, environment):
        asked.append((batch, calls, environment["TRITON_CACHE_DIR"]))
        times = dict(zip(cold.STAGES, (100.0 * len(asked), 10.0, 5.0, 1.0), strict=True))
        return {"ms": times, "peak_bytes": 1000 * batch, "reserved_bytes": None, "compiled": 3}

    found = cold.ColdStarts()
    cold.start(SPEC, (2, 1, 4), 3, found, call=call)
    assert [(batch, calls) for batch, calls, _ in asked] == [(2, 2)] * 3 + [(1, 1), (4, 1)]
    assert len({folder for _, _, folder in asked}) == 5
    assert {batch: memory["peak_bytes"] for batch, memory in found.memory.items()} == {2: 2000, 1: 1000, 4: 4000}
    first = found.rows(2)[0]
    assert (first["stage"], first["mode"], first["batch"]) == ("import", "cold", 2)
    assert first["ms_p50"] == 200 and first["ms_range"] == [100, 300] and first["samples_ms"] == [100, 200, 300]
    assert found.caches()["triton_files_compiled"] == [3, 3, 3]


def test_a_cold_start_that_fails_is_refused_and_the_rest_stays(monkeypatch):
    def call(*_, **__):
        raise subprocesses.ChildError("bench.cold_start:start: killed by SIGKILL")

    monkeypatch.setattr(cold.start, "__kwdefaults__", cold.start.__kwdefaults__ | {"call": call})
    report = Report({}, rows=[{"stage": TOTAL, "batch": 1, "mode": WARM}])
    product_run.time_cold(SPEC, (1,), 1, report, None)
    assert "SIGKILL" in report.refused[0]["reason"] and len(report.rows) == 1


def test_the_totals_are_the_graphs_where_there_is_one():
    rows = [
        {"stage": TOTAL, "batch": 1, "mode": WARM, "ms_p50": 9.0},
        {"stage": TOTAL, "batch": 1, "mode": WARM, "kind": "mono", "ms_p50": 8.0},
        {"stage": TOTAL, "batch": 2, "mode": GRAPH, "ms_p50": 1.0},
    ]
    assert product_run.totals(rows) == {"mono": 8.0, "stereo": 9.0}
    rows += [{"stage": TOTAL, "batch": 1, "mode": GRAPH, "ms_p50": 5.0}]
    assert product_run.totals(rows) == {"mono": 5.0}
    assert product_run.totals(rows, 3) == {}


def test_too_few_runs_for_a_percentile_are_said():
    row = {"stage": TOTAL, "batch": 1, "mode": WARM, "rounds": 20}
    assert product_run.product_lines([row]) == ["p95 needs 72 runs, p99 needs 368 runs; 20 were made"]
    assert product_run.product_lines([row | {"rounds": 100}]) == ["p99 needs 368 runs; 100 were made"]
    assert product_run.product_lines([row | {"rounds": 368}]) == []


@pytest.mark.slow
def test_the_command_for_a_checkpoint(tmp_path, capsys):
    file = tmp_path / "latency.json"
    command = "latency --checkpoint presto-tiny-ls --length 1 --device cpu --batch 2 1 --rounds 2 --cold-runs 1 --json"
    assert main([*command.split(), str(file)]) == 0
    content = json.loads(file.read_text())
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 100 and "…" not in output
    assert all("stage" in row for row in content["rows"])  # nothing is compared
    assert {(row["mode"], row["batch"]) for row in content["rows"]} == {("warm", 1), ("warm", 2), ("cold", 2)}
    described = content["summary"]["product"]
    assert (described["name"], described["weights"], described["dtype"]) == ("presto-tiny-ls", "checkpoint", "float32")
    assert {target["verdict"] for target in content["summary"]["targets"]} == {"not applicable on a CPU"}
    for row in content["rows"]:
        if row["stage"] == TOTAL and "kind" not in row:
            assert row["peak_bytes"] > row["weights_bytes"] and "energy_j_per_clip" in row
    assert content["meta"]["cold"]["triton_cache"].startswith("a new folder")
    starts = {row["stage"]: row["ms_p50"] for row in content["rows"] if row["mode"] == "cold"}
    assert list(starts) == ["import", "load", "first call", "second call"]
    assert starts["import"] > 100 and min(starts.values()) > 0
    assert isinstance(content["meta"]["marks"], list) and content["meta"]["telemetry"]["source"] == "Linux"
    assert "p99 needs 368 runs" in output and "cold start" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "nowhere"}, "no checkpoint 'nowhere'"),
        ({"checkpoint": "presto-tiny-ls", "seconds": 1e9}, "presto-tiny-ls: seconds must be at most"),
    ],
)
def test_a_pipeline_that_cannot_be_asked_for_is_a_bad_option(changes, message):
    with pytest.raises(BadOption, match=message):
        product_stages.load(dataclasses.replace(SPEC, **changes))


def test_what_the_options_leave_out_is_filled_in_but_not_for_a_checkpoint():
    options = latency.resolved(latency.LatencyOptions())
    assert (options.steps, options.dtype, options.guidance) == (4, "bf16", 1.0)
    own = latency.resolved(latency.LatencyOptions(checkpoint="presto-tiny-ls"))
    assert (own.steps, own.dtype, own.guidance) == (None, None, None)


def test_a_process_of_its_own():
    assert subprocesses.call("os:getpid") != subprocesses.call("os:getpid")
    assert subprocesses.call("os:getenv", "PRESTO_TEST", environment={"PRESTO_TEST": "seen"}) == "seen"
    with pytest.raises(subprocesses.ChildError, match="math:sqrt: ValueError: math domain error"):
        subprocesses.call("math:sqrt", -1)
    with pytest.raises(subprocesses.ChildError, match="killed by SIGABRT"):
        subprocesses.call("os:abort")
