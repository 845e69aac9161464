"""Scaling: planted exponents and fixed costs come out of noise; points are what they say; the command as a whole."""

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import cuda, fits, machine, measure, scaling, schema
from bench.__main__ import main
from bench.generation import Generation, Setup
from bench.measure import Ratio
from bench.plain_decoder import plain_decoder
from bench.results import Report
from bench.scaling_cases import Cost, Decoder, Point, Steps
from presto_models.autoencoders import Oobleck, OobleckConfig

CPU = torch.device("cpu")
OPTIONS = scaling.ScalingOptions(config="tiny", dtype="fp32", device="cpu")


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    monkeypatch.setattr(
        machine, "measure_ceilings", lambda device, dtypes: machine.Ceilings(30.0, dict.fromkeys(dtypes, 0.4))
    )


def timed(cost, values, *, rounds=21, noise=0.02):
    """What the harness measures where a call takes cost(value), by a fake clock: drift common to a round, and noise."""
    luck, now = random.Random(0), [0.0]

    def measured(value):
        def call():
            now[0] += cost(value) * drift[0] * luck.lognormvariate(0, noise) / 1e3

        return measure.cpu_timer(call, clock=lambda: now[0])

    drift = [1.0]

    def slower(samples):
        drift[0] *= 1.02

    measures = {str(value): measured(value) for value in values}
    samples = measure.interleave(measures, rounds=rounds, clock=lambda: now[0], on_round=slower)
    return np.stack([samples.ms(str(value)) for value in values], axis=1)


@settings(deadline=None, max_examples=20)
@given(exponent=st.floats(0.2, 2.2), scale=st.floats(1e-3, 1e3))
def test_a_planted_exponent_is_found(exponent, scale):
    values = [173, 345, 689, 1379, 2757]
    found = fits.fit(values, timed(lambda n: scale * n**exponent, values), 1379)
    assert found.exponent.low <= found.exponent.median <= found.exponent.high
    assert found.exponent.median == pytest.approx(exponent, abs=0.02)
    assert found.exponent.high - found.exponent.low < 0.05
    assert abs(found.deviation) < 0.05


@pytest.mark.parametrize("fixed", [0.0, 3.0, 30.0])
def test_a_planted_fixed_cost_is_found(fixed):
    values = [1, 2, 4, 8]
    found = fits.fit(values, timed(lambda n: fixed + 10 * n, values), 4)
    assert found.fixed_share.median == pytest.approx(fixed / (fixed + 40), abs=0.02)
    assert (found.fixed_share.low > 0) == (fixed > 0)


def test_a_curve_is_told_from_a_power_law():
    values = [100, 200, 400, 800, 1600]
    found = fits.fit(values, timed(lambda n: n + n * n / 400, values, noise=0.001), 800)
    assert 1 < found.exponent.median < 2
    assert abs(found.deviation) > 0.05 and found.fixed_share.high < 0


def test_no_round_gives_no_fit():
    assert fits.fit([1, 2], np.empty((0, 2)), 1) is None


def test_an_interval_wider_than_the_difference_is_unsure():
    assert fits.unsure(0.02, Ratio(1.02, 0.99, 1.05, 9))
    assert not fits.unsure(-0.2, Ratio(0.8, 0.75, 0.85, 9))


def test_a_sentence_names_what_is_not_there():
    values = [1, 2, 4]
    fit = fits.fit(values, timed(lambda n: 5.0 * n, values), 4)
    said = scaling.sentence("steps", fit, 1.0, 4)
    assert "no fixed cost seen" in said and "grows as steps^1.0" in said
    fit = fits.fit(values, timed(lambda n: 20 + 5.0 * n, values), 4)
    assert "fixed cost 50 %" in scaling.sentence("steps", fit, 1.0, 4)


def test_default_points_are_odd_and_around_the_base():
    base = scaling.base_point(scaling.ScalingOptions())
    axes = scaling.points(scaling.ScalingOptions(), base)
    assert list(axes["length"]) == [173, 345, 689, 1379, 2759]
    assert list(axes["depth"]) == [3, 6, 12, 24] and axes["depth"][24] == axes["batch"][1] == axes["length"][1379]
    assert axes["steps"][4] == Point("walk", 1379, 1, 24, 4)


@pytest.mark.parametrize(
    "arguments",
    ["--depth 4 9", "--length 5", "--batch 0 2", "--stage decode --axes depth", "--blocks 99 --axes length"],
)
def test_points_that_cannot_be(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["scaling", "--config", "tiny", "--device", "cpu", *arguments.split()])
    assert stopped.value.code == 2 and "--" in capsys.readouterr().err


@pytest.fixture(scope="module")
def steps():
    with torch.no_grad():
        return Steps(Generation(Setup("tiny", 1, "fp32", 1.0, CPU)), compile=False)


@pytest.mark.parametrize("stage, steps_", [("step", 1), ("walk", 3)])
def test_a_point_runs_its_length_batch_blocks_and_steps(steps, stage, steps_):
    point, ran = Point(stage, 13, 3, 5, steps_), []
    with torch.no_grad():
        hooks = [
            module.register_forward_hook(lambda *_: ran.append(1))
            for model in (steps.generation.presto, steps.generation.reference)
            for module in model.modules()
            if type(module).__name__ in ("SwiGLU", "ReferenceSwiGLU")
        ]
        results = {name: call() for name, call in steps.calls(point).items()}
    for hook in hooks:
        hook.remove()
    assert len(ran) == 2 * 5 * steps_
    assert results["presto"].shape == (3, 13, 16)
    torch.testing.assert_close(results["presto"], results["reference"], rtol=1e-3, atol=1e-3)


def test_costs_follow_the_point(steps):
    ceilings = {"copy_gbs": 30.0, "matmul_tflops": {"fp32": 0.4}}
    one = steps.cost(Point("step", 87, 1, 8, 1), ceilings)
    assert steps.cost(Point("walk", 87, 1, 8, 3), ceilings) == Cost(3 * one.flops, pytest.approx(3 * one.floor_ms))
    twice = steps.cost(Point("step", 174, 1, 8, 1), ceilings)
    assert 2 * one.flops < twice.flops < 4 * one.flops


def test_a_wrong_model_is_refused(steps):
    point = Point("step", 13, 1, 8, 1)
    with torch.no_grad():
        assert steps.check(point) == {}
        wrong = Generation(Setup("tiny", 1, "fp32", 1.0, CPU))
        wrong.presto.load_state_dict({name: w.clone() for name, w in wrong.presto.state_dict().items()}, assign=True)
        wrong.presto.proj_out.weight.mul_(1.01)
        assert Steps(wrong, compile=False).check(point).keys() == {"presto"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_decoder_and_its_plain_self_agree(dtype):
    decoder = Decoder("tiny", dtype, CPU, compile=False)
    point = Point("decode", 21, 2, 8, 1)
    with torch.no_grad():
        assert decoder.check(point) == {}
        assert {call().shape for call in decoder.calls(point).values()} == {(2, 1, 21 * 48)}
        right = decoder.ways["presto"]
        decoder.ways["presto"] = lambda latents: 1.5 * right(latents)
        assert decoder.check(point).keys() == {"presto"}
    ceilings = {"matmul_tflops": {dtype: 0.4}}
    assert decoder.cost(point, ceilings).flops == 2 * decoder.cost(Point("decode", 21, 1, 8, 1), ceilings).flops


def test_the_plain_decoder_is_diffusers():
    pytest.importorskip("diffusers")
    from bench import decode

    decoding = decode.Decoding(decode.DecodeOptions(config="tiny", dtype="fp32", audio=0.05, device="cpu"), CPU)
    with torch.no_grad():
        ours = plain_decoder(decoding.presto)(decoding.latents)
        torch.testing.assert_close(ours, decode.decode_plain(decoding.reference, decoding.latents))


def test_a_plain_decoder_leaves_the_weights_alone():
    autoencoder = Oobleck(OobleckConfig.named("tiny")).bfloat16()
    before = {name: weight.clone() for name, weight in autoencoder.state_dict().items()}
    assert plain_decoder(autoencoder, torch.float64)(torch.randn(1, 5, 4)).dtype == torch.float64
    assert all(torch.equal(weight, before[name]) for name, weight in autoencoder.state_dict().items())
    with pytest.raises(TypeError, match="Down"):
        plain_decoder(type("Wrong", (), {"decoder": autoencoder.encoder[0], "parameters": autoencoder.parameters})())


def test_the_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file, plot = tmp_path / "scaling.json", tmp_path / "scaling.png"
    command = "scaling --config tiny --dtype fp32 --device cpu --length 11 21 --batch 1 3 --steps 1 2 --seconds 0"
    assert main([*command.split(), "--json", str(file), "--plot", str(plot)]) == 0
    report = schema.read(file)
    keys = [row["key"] for row in report.rows]
    assert "step/length/21/presto" in [key.replace("fp32/", "") for key in keys] and len(keys) == len(set(keys))
    assert len(keys) == 2 * (2 + 2 + 4 + 2)
    assert all(row["rounds"] == 3 == len(row["samples_ms"]) and row["floor_ms"] > 0 for row in report.rows)
    fit = report.summary["axes"]["depth"]["presto"]
    assert fit["exponent_interval"][0] <= fit["exponent"] <= fit["exponent_interval"][1]
    assert report.summary["axes"]["steps"]["floor_exponent"] == pytest.approx(1)
    output = capsys.readouterr().out
    assert "ms grows as length^" in output and max(map(len, output.splitlines())) <= 100
    assert plot.stat().st_size > 10_000


def test_the_command_for_the_decoder(tmp_path):
    file = tmp_path / "decode.json"
    command = "scaling --stage decode --config tiny --dtype fp32 --device cpu --length 5 11 --batch 1 2 --seconds 0"
    assert main([*command.split(), "--json", str(file)]) == 0
    assert {row["axis"] for row in json.loads(file.read_text())["rows"]} == {"length", "batch"}


def test_on_cuda_points_are_graph_replays(steps, monkeypatch):
    """The device is only a name here: what the branch would call is faked."""
    monkeypatch.setattr(cuda, "graph_timer", lambda calls: lambda part: float(len(calls)))
    axes = {"length": {5: Point("step", 5, 1, 8, 1), 9: Point("step", 9, 1, 8, 1)}}
    report = Report({"ceilings": {"copy_gbs": 30.0, "matmul_tflops": {"fp32": 0.4}}})
    with torch.no_grad():
        measures, costs = scaling.prepare_points(steps, axes, report, torch.device("cuda"))
    assert [timer(0) for timer in measures.values()] == [1.0] * 4 and len(costs) == 2


def test_a_stop_keeps_what_was_measured(monkeypatch, tmp_path):
    file, turns = tmp_path / "stopped.json", []

    def stop(*args, **kwargs):
        turns.append(1)
        if len(turns) > 20:
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(measure, "cpu_timer", lambda call, repeats: stop)
    command = "scaling --config tiny --dtype fp32 --device cpu --axes length --length 5 9 --json"
    assert main([*command.split(), str(file)]) == 130
    assert {row["rounds"] for row in json.loads(file.read_text())["rows"]} == {4}
