"""The search by both sides: one set of weights, one task, checked; parts, memory and the race add up."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_ditto import SIZES, pipeline_of, spectral

from bench import cuda, ditto, ditto_memory, ditto_parts, ditto_race, machine, subprocesses, validate
from bench.__main__ import main
from bench.ditto_parts import PARTS, Staged
from bench.ditto_sides import PlainEngine
from bench.ditto_tasks import DITTO, DITTO_2, METHODS, Sizes, Task, check, restart
from bench.measure import Samples
from bench.plain_decoder import plain_spectral
from bench.results import Report, sample_fields
from bench.saved import saved_bytes
from presto_models.ditto.options import DittoOptions

COMMAND = "ditto --audio 0.2 --sampling-steps 3 --device cpu --rounds 3 --seconds 0"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    ceilings = machine.Ceilings(30.0, {"fp32": 0.4})
    monkeypatch.setattr(machine, "measure_ceilings", lambda device, dtypes: ceilings)
    monkeypatch.setattr(Sizes, "pipeline", lambda self, method: pipeline_of(method))


@pytest.fixture
def task():
    return Task(DITTO, SIZES)


# The two sides


@pytest.mark.parametrize("kind", ["spectral", "oobleck", "ctm"])
@pytest.mark.parametrize("method", METHODS)
def test_both_sides_are_right(method, kind, monkeypatch):
    monkeypatch.setattr(Sizes, "pipeline", lambda self, method: pipeline_of(method, kind))
    assert check(Task(method, replace(SIZES, surrogate_steps=2)), ["presto", "reference"]) == {}


def test_both_sides_walk_to_the_same_music(task):
    errors = []
    for name in ("reference", "presto"):
        search = task.search(name)
        search.step()
        errors.append(search.history)
    assert errors[0].shape == (1, 1, 2) and float(errors[0].min()) > 1
    torch.testing.assert_close(errors[1], errors[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("factor, wrong", [(1.0, False), (1.0 + 1e-4, True)])
def test_a_wrong_gradient_is_refused(task, monkeypatch, factor, wrong):
    prepare = task.pipeline.engine.prepare

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return factor * gradient

    def other(plan, conditioning):
        denoise = prepare(plan, conditioning)
        return lambda x, *levels: Scaled.apply(denoise(x, *levels))

    monkeypatch.setattr(task.pipeline.engine, "prepare", other)
    found = check(task, ["presto"])
    assert ("d noise" in str(found.get("presto"))) == wrong and "x:" not in str(found)


def test_the_plain_side_computes_nothing_before_and_uses_no_op_of_ours(task, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("one of our ops ran")

    walk = task.walk("reference")
    for module in ("presto_models.dit", "presto_models.autoencoders.spectral", "presto_models.diffusion.edm"):
        for op in ("adaln_modulate", "gated_residual", "gated_residual_adaln", "swiglu", "attention", "edm_denoise"):
            monkeypatch.setattr(f"{module}.{op}", forbidden, raising=False)
    monkeypatch.setattr(task.pipeline.dit, "precompute", forbidden)
    noise = task.noise.requires_grad_()
    audio = task.engines["reference"].decode(walk(noise))
    assert torch.autograd.grad(audio.square().sum(), noise)[0].abs().sum() > 0
    with pytest.raises(AssertionError, match="one of our ops"):
        task.walk("presto")


def test_the_plain_network_shares_the_weights(task):
    own = task.pipeline.dit.state_dict()
    for name, weight in task.engines["reference"].network.state_dict().items():
        assert weight.data_ptr() == own[name].data_ptr()
    assert PlainEngine(task.pipeline, torch.float64).network.proj_in.weight.dtype == torch.float64


def test_a_plain_spectral_decoder_is_ours():
    ours, latents = spectral().eval(), torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    plain = plain_spectral(ours)
    with torch.no_grad():
        for a, b in zip(*(vars(each.frames(latents)).values() for each in (plain, ours)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert type(plain.decoder[0]).__name__ == "PlainConvNeXt" and isinstance(ours.decoder[-1], torch.nn.Linear)


def test_the_walk_is_the_products(task):
    product = DittoOptions(sampler="ddim", sampling_steps=3, guidance=3.0).completed(task.pipeline)
    near, _ = product.plans(task.pipeline, 0.5, 2)
    assert (task.plan, task.x_max) == (near, product.x_max) and task.x_max is not None
    second = Task(DITTO_2, SIZES)
    assert second.plan.sampling.sampler == "ddim" and second.plan.sampling.steps == 1
    assert second.plan.sampling.spacing == "interval"
    assert second.plan.schedule is not None and second.x_max is None


# A step in parts


def test_the_parts_make_a_step(task):
    search, staged = task.search("presto"), Staged(task.search("presto"))
    for _ in range(3):
        restart(search)
        search.step()
        staged.step()
    assert len(staged.calls) == len(PARTS)
    assert not torch.equal(search.noise, task.noise)
    torch.testing.assert_close(staged.search.noise, search.noise, rtol=0, atol=1e-6)


def test_on_cuda_every_part_is_a_graph_in_one_pool(task, monkeypatch):
    done = []
    monkeypatch.setattr(cuda, "warm_up", lambda call: done.append("warm"))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(cuda, "capture", lambda calls, pool: (done.append((*calls, pool)), ["result"]))
    monkeypatch.setattr(cuda, "Replay", lambda graph, calls, results, held: (calls, results))
    staged = Staged(task.search("presto"))
    staged.search = SimpleNamespace(noise=SimpleNamespace(device=torch.device("cuda")))
    assert ditto_parts.timers(staged) == [(1, ["result"])] * len(PARTS)
    assert done == ["warm", *((call, "pool") for call in staged.calls)]


def test_on_cuda_each_implementation_is_timed_as_a_graph_too():
    made = []

    def search(name, eager):
        if name == "compile":
            raise RuntimeError("no compiler")
        steps = []
        made.append((name, eager, steps))
        return SimpleNamespace(step=lambda: steps.append(1), done=torch.zeros(()))

    task = SimpleNamespace(noise=SimpleNamespace(device=torch.device("cuda")), search=search, method=DITTO)
    report = Report({})
    assert list(ditto.started(task, ["reference", "presto", "compile"], report)) == [
        "reference",
        "presto",
        "reference_graph",
        "presto_graph",
    ]
    assert [(name, eager, len(steps)) for name, eager, steps in made] == [
        ("reference", True, 1),
        ("presto", True, 1),
        ("reference", False, 3),
        ("presto", False, 3),
    ]
    assert {refusal["implementation"] for refusal in report.refused} == {"compile", "compile_graph"}


def test_a_graph_is_held_against_the_references_graph():
    times = {"reference": [[4.0]], "reference_graph": [[3.0]], "presto": [[2.0]], "presto_graph": [[1.0]]}
    rows = ditto.step_rows(Samples(times), {"presto": 7})
    assert [(row["reference_over_this"], row["peak_bytes"]) for row in rows] == [(1, None), (1, None), (2, 7), (3, 7)]


# Memory


def test_a_fake_tensor_that_lies_about_does_not_count():
    with torch._subclasses.FakeTensorMode():
        left = torch.empty(8)
    x = torch.randn(100, requires_grad=True)
    assert saved_bytes(lambda: x.exp()) == 400 and left.numel() == 8


def test_saved_bytes_are_counted_exactly():
    x, weight = torch.randn(100, requires_grad=True), torch.randn(100)
    assert saved_bytes(lambda: x.exp()) == 400  # its result
    assert saved_bytes(lambda: x * weight) == 0  # the weight stood before
    # exp() keeps its result, which the product keeps too; sin() its input, a view of all 100; the product its result.
    assert saved_bytes(lambda: (lambda y: y[:50].exp() * y[50:].sin())(2 * x)) == 200 + 400 + 200
    double = torch.utils.checkpoint.checkpoint
    assert saved_bytes(lambda: double(lambda y: y.exp().exp().exp(), 2 * x, use_reentrant=False)) == 400  # its input
    assert saved_bytes(lambda: x.detach() * 2) == 0

    def with_a_part_nobody_needs():
        return x.exp().exp().detach() * x.sin()  # which keeps its result's other factor; x stood before

    assert saved_bytes(with_a_part_nobody_needs) == 400


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpointed_walk_keeps_one_call_and_its_latents(method):
    def found(steps, checkpointed):
        case = ditto_memory.Case(method, "presto", steps, checkpointed)
        measured = ditto_memory.measure(vars(case), vars(SIZES))
        return measured | ditto_memory._derived(case, measured)

    short, long = found(2, True), found(6, True)
    latent = 2 * 63 * 5 * 4
    assert short["latent_bytes"] == latent and short["call_bytes"] > 10 * latent
    assert short["saved_bytes"] == 2 * latent and long["saved_bytes"] == 6 * latent
    for each in (short, long):
        assert each["walk_bytes"] == each["line_bytes"]
    kept = found(6, False)
    assert kept["walk_bytes"] > 3 * long["walk_bytes"] and kept["decoder_bytes"] == long["decoder_bytes"] > 0


def fake_measured(case, sizes):
    if case.steps == 3:
        raise subprocesses.ChildError("killed")
    saved = case.steps * (10 if case.checkpointed else 1000)
    return {
        "peak_bytes": saved + 5000,
        "saved_bytes": saved,
        "call_bytes": 1000,
        "latent_bytes": 10,
        "decoder_bytes": 500,
    }


def test_the_memory_curve(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(ditto_memory, "_measured", fake_measured)
    monkeypatch.setattr(ditto_memory.Meter, "available", lambda self: 60_000)
    file, plot = tmp_path / "r.json", tmp_path / "curve.png"
    command = f"ditto --curve --walks 20 1 3 50 --device cpu --json {file} --plot {plot}"
    assert main(command.split()) == 1
    content = json.loads(file.read_text())
    assert [(row["value"], row["variant"], row["walk_bytes"], row["line_bytes"]) for row in content["rows"]] == [
        (1, "checkpointed", 1010, 1010),
        (1, "kept", 1000, 1010),
        (20, "checkpointed", 1200, 1200),
        (20, "kept", 20000, 1200),
        (50, "checkpointed", 1500, 1500),
    ]
    reasons = {(refusal["value"], refusal["variant"]): refusal["reason"] for refusal in content["refused"]}
    assert "killed" in reasons[3, "checkpointed"] and "are free" in reasons[50, "kept"]
    assert content["summary"]["curve"]["checkpointed"]["steps"] == [1, 50]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert validate.validate(file)[1] == []
    output = capsys.readouterr().out.split("refused")[0]
    assert "latents" in output and max(map(len, output.splitlines())) <= 100


@pytest.mark.slow
def test_the_peak_is_of_a_process_of_its_own():
    found = ditto_memory._measured(ditto_memory.Case(DITTO_2, "presto"), replace(SIZES, config="tiny", audio=1.0))
    assert found["peak_bytes"] > found["call_bytes"] > 4 * 44100
    assert found["saved_bytes"] == found["latent_bytes"] > 0


def test_a_process_that_dies_is_refused(monkeypatch):
    def dies(*arguments):
        raise subprocesses.ChildError("killed by SIGKILL")

    monkeypatch.setattr(subprocesses, "call", dies)
    report = Report({})
    assert ditto_memory.peaks(DITTO, SIZES, report) == {}
    assert [refusal["implementation"] for refusal in report.refused] == ["reference", "presto"]


# The race


def searched(method, seed, errors, *, step=1000.0, start=500.0, finish=250.0):
    took = np.full(len(errors) - 1, step)
    row = {"method": method, "seed": seed, "stage": "search", "start_ms": start, "finish_ms": finish}
    return row | sample_fields(took) | {"errors": errors, "last_error": errors[-1], "implementation": "presto"}


def test_a_search_is_timed_without_what_is_only_asked_of_it():
    race = ditto_race.Race(1, {DITTO: 4, DITTO_2: 5}, every=2, threshold=None, prompt="organ")
    seen, moments = [], iter(range(1000))
    given = ditto_race.setup(pipeline_of(DITTO_2), DITTO_2, replace(SIZES, batch=1), race, seed=7)
    assert given.near.sampling.steps == 1 and given.far.sampling.steps == 2 and given.seeds == (7,)
    row = ditto_race.follow(given, every=2, on_step=seen.append, clock=lambda: next(moments))
    assert seen == [1, 2, 3, 4, 5]
    assert [error is None for error in row["errors"]] == [False, True, False, True, False, False]
    assert row["samples_ms"] == [1000.0] * 5 and row["start_ms"] == row["finish_ms"] == 1000.0
    assert next(moments) == 14  # the clock was read around 5 steps, the start and the end


def test_dittos_errors_are_those_of_its_music():
    race = ditto_race.Race(1, {DITTO: 4, DITTO_2: 5}, every=2, threshold=None, prompt="organ")
    given = ditto_race.setup(pipeline_of(DITTO), DITTO, replace(SIZES, batch=1), race, seed=7)
    row = ditto_race.follow(given, every=2, on_step=lambda step: None)
    errors = row["errors"]
    assert len(errors) == 5 and errors == sorted(errors, reverse=True) and errors[-1] < errors[0]
    assert errors[1] == pytest.approx(errors[0], rel=1e-4)  # before the first step nothing else was seen
    assert row["last_error"] == pytest.approx(errors[-1], rel=1e-4)


def test_times_to_an_error():
    row = searched(DITTO_2, 0, [9.0, None, 5.0, None, 2.0])
    assert [ditto_race.seconds_to(row, level) for level in (9, 5, 3, 1)] == [0.75, 2.75, 4.75, None]


def test_who_never_arrives_is_not_counted_as_fast():
    never = (searched(DITTO, 0, [9.0, 5.0, 1.0], step=10000), searched(DITTO_2, 0, [9.0, 8.0]))
    reached = (searched(DITTO, 1, [9.0, 5.0, 1.0], step=10000), searched(DITTO_2, 1, [9.0, 0.5]))
    at_one = ditto_race.compare([reached], lambda ditto: 1.0)
    assert at_one["ditto_over_ditto2"] == pytest.approx(20.75 / 1.75, abs=1e-3)
    both = ditto_race.compare([never, reached, never], lambda ditto: 1.0)
    assert both["reached"] == {"ditto": 3, "ditto-2": 1} and both["ditto_over_ditto2"] == 0
    below = ditto_race.compare([reached], lambda ditto: 0.7)  # DITTO never does
    assert below["reached"]["ditto"] == 0 and below["seconds"]["ditto"] is None
    assert below["ditto_over_ditto2"] == pytest.approx(20.75 / 1.75, abs=1e-3)


def test_the_levels_lie_between_dittos_first_and_last_error():
    rows = [
        row for seed in (0, 1) for row in (searched(DITTO, seed, [9.0, 5.0, 1.0]), searched(DITTO_2, seed, [8.0, 7.0]))
    ]
    levels = ditto_race.summarise(rows, None)["levels"]
    assert [each["level"] for each in levels] == pytest.approx([5, 3, 1.8, 1])
    assert ditto_race.summarise(rows, 4.0)["levels"][0]["level"] == 4.0


# The command


def test_the_command(tmp_path, capsys):
    file = tmp_path / "r.json"
    assert main([*COMMAND.split(), "--no-memory", "--batch", "2", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    rows = {(row["method"], row["part"], row["implementation"]): row for row in content["rows"]}
    assert len(rows) == 2 * 2 * (1 + len(PARTS))
    for method in METHODS:
        for name in ("reference", "presto"):
            assert sum(rows[method, part, name]["share"] for part in PARTS) == pytest.approx(1, abs=0.3)
        assert len(content["summary"][method]["reference_over_presto_interval"]) == 2
    assert content["summary"][DITTO]["model_calls"] == 3 and content["refused"] == []
    assert validate.validate(file)[1] == []
    output = capsys.readouterr().out
    assert "recompute" in output and max(map(len, output.splitlines())) <= 100


def test_the_command_for_the_race(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file, plot = tmp_path / "r.json", tmp_path / "race.png"
    command = f"{COMMAND} --race --runs 2 --steps 3 --second-steps 6 --every 2 --json {file} --plot {plot}"
    assert main(command.split()) == 0
    content = json.loads(file.read_text())
    assert [(row["method"], row["seed"]) for row in content["rows"]] == [(m, s) for s in (0, 1) for m in METHODS]
    assert content["summary"]["race"]["runs"] == 2
    assert validate.validate(file)[1] == []
    assert plot.read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr().out
    assert "dB²" in output and max(map(len, output.splitlines())) <= 100


def test_what_is_wrong_is_refused_and_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ditto, "check", lambda task, names: {"presto": AssertionError("presto: d noise BEYOND")})
    file = tmp_path / "r.json"
    command = [*COMMAND.split(), "--no-memory", "--no-parts", "--methods", DITTO, "--json", str(file)]
    assert main(command) == 1
    content = json.loads(file.read_text())
    assert {row["implementation"] for row in content["rows"]} == {"reference"}
    assert "refused" in capsys.readouterr().out and content["refused"][0]["implementation"] == "presto"


def test_a_stop_keeps_what_was_measured(monkeypatch, tmp_path):
    follow, file = ditto_race.follow, tmp_path / "r.json"

    def stopped(given, **how):
        if given.seeds == (1,):
            raise KeyboardInterrupt
        return follow(given, **how)

    monkeypatch.setattr(ditto_race, "follow", stopped)
    command = f"{COMMAND} --race --runs 2 --steps 2 --second-steps 2 --json {file}"
    assert main(command.split()) == 130
    assert {row["seed"] for row in json.loads(file.read_text())["rows"]} == {0}


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--curve --race", "one at a time"),
        ("--plot x.png", "goes with --curve or --race"),
        ("--race --config tiny", "follow no control"),
        ("--race --batch 2", "one sample a run"),
        ("--audio 0", "above 0"),
        ("--race --every 0", "--every: 0"),
        ("--curve --walks 0 5", "at least 1"),
    ],
)
def test_options_that_cannot_be(flags, message):
    with pytest.raises(SystemExit, match=message):
        main(["ditto", "--device", "cpu", *flags.split()])
