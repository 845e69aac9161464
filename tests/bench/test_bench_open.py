"""The bench of the models people have: the real sizes, equal sides, and no side quicker than it is right."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import presto_kernels
from bench import machine, measure, validate
from bench.__main__ import main
from bench.open_models import run as open_models
from bench.open_models.cases import CASES, Case
from bench.open_models.peers import NotThere

pytest.importorskip("diffusers", "0.42")

SIZES = {  # millions of parameters, and what 30 s (Oobleck 10 s) cost; shared/PEERS.md counted them by hand
    "sa3-small": 459.1,
    "sa3-medium": 1453.2,
    "sao-tools": 1056.8,
    "sao-diffusers": 1056.8,
    "same-s": 54.5,
    "oobleck-diffusers": 78.1,
    "oobleck-tools": 78.1,
}
CPU = torch.device("cpu")
OPTIONS = open_models.OpenOptions(
    models=("small",), dtype="fp32", audio=0.5, device="cpu", compile=False, rounds=3, seconds=0
)


def small_dit() -> nn.Module:
    from diffusers import StableAudioDiTModel

    return StableAudioDiTModel(
        in_channels=64, num_layers=2, attention_head_dim=64, num_attention_heads=2, num_key_value_attention_heads=1,
        out_channels=64, cross_attention_dim=128,
    )  # fmt: skip


def named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


SMALL = replace(named("sao-diffusers"), name="small", make=small_dit)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(
        machine, "measure_ceilings", lambda device, dtypes: machine.Ceilings(30.0, dict.fromkeys(dtypes, 0.4))
    )
    monkeypatch.setattr(open_models, "CASES", (SMALL,))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_sizes_are_the_published_ones(case):
    try:
        with torch.device("meta"):
            module = case.make()
    except NotThere as missing:
        pytest.skip(str(missing))
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(SIZES[case.name], rel=0.01)


def test_two_builds_are_equal_and_nothing_in_them_is_idle():
    first, second = SMALL.build(torch.float32, CPU), SMALL.build(torch.float32, CPU)
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        assert one.any(), name
        assert torch.equal(one, two), name


def sides_of(monkeypatch) -> dict[str, float]:
    """FLOPs of one more call of each side, as the timing begins."""
    counted = {}

    def count(measures, **options):
        for name, timed in measures.items():
            with FlopCounterMode(display=False) as counter:
                timed(0)
            counted[name] = counter.get_total_flops()
        return measure.Samples({name: [[1.0, 1.0]] for name in measures})

    monkeypatch.setattr(measure, "interleave", count)
    assert open_models.run(OPTIONS) == 0
    return counted


def test_only_the_kept_side_leaves_out_what_the_prompt_decides(monkeypatch):
    counted = sides_of(monkeypatch)
    into_model = 768 * 128 + 128 * 128  # cross_attention_proj
    into_heads = 2 * 2 * 128 * 64  # keys and values of both blocks
    assert counted["presto"] - counted["presto_kept"] == pytest.approx(2 * 130 * (into_model + into_heads), rel=0.02)
    assert counted["presto"] <= counted["reference"]


def test_the_command(tmp_path, capsys, monkeypatch):
    file = tmp_path / "open.json"
    monkeypatch.setattr(open_models, "CASES", (replace(SMALL, name="sao-diffusers"),))
    command = "open --models sao-diffusers --dtype bf16 --audio 1 --device cpu --rounds 3 --seconds 0 --no-compile"
    status = main([*command.split(), "--json", str(file)])
    assert validate.validate(file)[1] == []
    read = json.loads(file.read_text())
    found = read["summary"]["sao-diffusers"]
    assert status == (1 if found["reference_over_presto_kept_interval"][1] < 1 else 0)
    rows = {row["implementation"]: row for row in read["rows"]}
    assert rows.keys() == {"reference", "presto", "presto_kept"} and read["refused"] == []
    assert all(row["rounds"] == 3 and row["wait_ms"] >= 0 for row in rows.values())
    assert found["gflop"] > 0 and found["bound"] > 0
    output = capsys.readouterr().out
    assert "presto_kept" in output and max(map(len, output.splitlines())) <= 100


def test_a_model_that_became_wrong_is_refused(monkeypatch, capsys):
    accelerate = presto_kernels.accelerate

    def spoil(module):
        accelerate(module)
        with torch.no_grad():
            next(p for name, p in module.named_parameters() if name.endswith("to_out.0.weight")).mul_(1.1)

    monkeypatch.setattr(presto_kernels, "accelerate", spoil)
    assert open_models.run(OPTIONS) == 1
    assert "output" in capsys.readouterr().out


def missing():
    raise NotThere("not installed (how to)")


def test_a_library_that_is_not_there_is_said(monkeypatch, capsys):
    monkeypatch.setattr(open_models, "CASES", (replace(SMALL, make=missing),))
    assert open_models.run(OPTIONS) == 1
    assert "how to" in capsys.readouterr().out


def test_each_of_several_models_has_a_process_and_one_that_fails_does_not_end_the_others(tmp_path, monkeypatch, capsys):
    asked = []

    def process(command):
        """What the command would do, here."""
        assert command[1:4] == ["-m", "bench", "open"]
        given = dict(zip(command[4:-1:2], command[5::2], strict=True))
        asked.append(given["--models"])
        if given["--models"] == "killed":
            return -9
        options = replace(OPTIONS, models=(given["--models"],), dtype=given["--dtype"], json=given["--json"])
        return open_models.run(options)

    file = tmp_path / "open.json"
    cases = (replace(SMALL, name="gone", make=missing), replace(SMALL, name="killed"), SMALL)
    monkeypatch.setattr(open_models, "CASES", cases)
    monkeypatch.setattr(open_models, "status_of", process)
    assert open_models.run(replace(OPTIONS, models=("gone", "killed", "small"), json=str(file))) == 1
    read = json.loads(file.read_text())
    assert asked == ["gone", "killed", "small"]
    assert [(row["subject"]) for row in read["refused"]] == ["gone", "killed"] and read["summary"].keys() == {"small"}
    assert "how to" in capsys.readouterr().out


@pytest.mark.slow
def test_the_processes_say_what_is_missing(tmp_path, monkeypatch):
    file = tmp_path / "open.json"
    monkeypatch.setattr(open_models, "CASES", CASES)
    monkeypatch.delenv("PRESTO_STABLE_AUDIO_3", raising=False)
    command = "open --models sa3-small same-s --device cpu"
    assert main([*command.split(), "--json", str(file)]) == 1
    read = json.loads(file.read_text())
    assert validate.validate(file)[1] == []
    assert [row["subject"] for row in read["refused"]] == ["sa3-small", "same-s"]
    assert all("PRESTO_STABLE_AUDIO_3" in row["reason"] for row in read["refused"])


def test_slower_than_untouched_is_a_failure(monkeypatch, capsys):
    times = {"reference": [[1.0, 1.0]], "presto": [[2.0, 2.1]], "presto_kept": [[2.0, 2.1]]}
    monkeypatch.setattr(measure, "interleave", lambda *args, **kwargs: measure.Samples(times))
    assert open_models.run(OPTIONS) == 1
    assert "slower than untouched: small" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["--audio 0", "--rounds 0", "--models unheard-of", "--dtype int8"])
def test_bad_options_are_named(wrong, capsys):
    with pytest.raises(SystemExit):
        main(["open", *wrong.split()])
    assert wrong.split()[0] in capsys.readouterr().err
