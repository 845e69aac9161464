"""The commands as people type them, end to end on the tiny model, and what they leave behind."""

import json
import re

import pytest
import torch

from bench import latency, measure, show
from bench.__main__ import COMMANDS, main

RATIOS = ("reference_over_presto", "scheduled_over_full", "reference_over_scheduled")


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    from bench import machine

    monkeypatch.setattr(
        machine, "measure_ceilings", lambda device, dtypes: machine.Ceilings(30.0, dict.fromkeys(dtypes, 0.4))
    )


def run(capsys, command, *paths):
    status = main([*command.split(), *map(str, paths)])
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 100
    assert "…" not in output
    return status, output


def test_latency(tmp_path, capsys):
    file = tmp_path / "latency.json"
    status, output = run(
        capsys,
        "latency --config tiny --steps 3 --dtype bf16 --device cpu --rounds 3 --no-compile --no-cold --json",
        file,
    )
    assert status == 0
    read = json.loads(file.read_text())
    assert {"device", "driver", "clocks", "torch", "triton", "commit", "command", "ceilings"} <= read["meta"].keys()
    assert read["refused"] == []
    rows = {(row["implementation"], row["step"]): row for row in read["rows"] if "step" in row}
    assert rows.keys() == {(i, s) for i in ("reference", "presto", "scheduled") for s in (0, 1, 2, "all")}
    assert rows["presto", "all"]["blocks"] == 24
    assert rows["scheduled", "all"]["blocks"] < 24
    assert rows["presto", 0]["sigma"] == 80
    assert all(row["rounds"] == 3 and 0 < row["ms_p50"] <= row["ms_p95"] and row["tflops"] > 0 for row in rows.values())
    for name in RATIOS:
        low, high = read["summary"][f"{name}_interval"]
        assert 0 < low <= read["summary"][name] <= high
    assert "compile_over_presto" not in read["summary"]
    assert read["summary"]["decode_diffusers_over_presto"] > 0
    assert {row["key"] for row in read["rows"] if row.get("stage") == "decode"} == {
        "decode/1/87/reference",
        "decode/1/87/presto",
        "warm/decode/1/presto",
    }
    assert {target["ms"] for target in read["summary"]["targets"]} == {230, 435, 22, 460}
    assert all(target["verdict"] == "not applicable on a CPU" for target in read["summary"]["targets"])
    assert read["summary"]["total_ms"]["stereo"] > read["summary"]["total_ms"]["mono"] > 0
    assert "total, mono" in output and "scheduled_over_full" in output and "arXiv" in output


@pytest.mark.slow
def test_latency_with_torch_compile(tmp_path, capsys):
    file = tmp_path / "latency.json"
    status, _ = run(capsys, "latency --config tiny --device cpu --rounds 3 --guidance 3 --no-product --json", file)
    read = json.loads(file.read_text())
    assert (status, read["refused"]) == (0, [])
    assert read["summary"]["compile_over_presto"] > 0
    assert read["summary"]["compile_seconds"] > 0
    assert "compile" in {row["implementation"] for row in read["rows"]}


def test_ctrl_c_keeps_the_whole_rounds(tmp_path, capsys, monkeypatch):
    calls = 0
    timer = measure.cpu_timer

    def stops(call, **options):
        def counted():
            nonlocal calls
            calls += 1
            if calls == 15:  # two steps of three implementations: in the third round
                raise KeyboardInterrupt
            return call()

        return timer(counted, **options)

    monkeypatch.setattr(latency.measure, "cpu_timer", stops)
    file = tmp_path / "latency.json"
    status, output = run(capsys, "latency --config tiny --steps 2 --device cpu --rounds 50 --no-compile --json", file)
    assert status == 130
    assert "stopped" in output
    read = json.loads(file.read_text())
    assert {row["rounds"] for row in read["rows"]} == {2}
    assert read["summary"]["reference_over_presto"] > 0
    assert read["meta"]["telemetry"]["readings"] > 0


def test_steps(tmp_path, capsys):
    file, kernels = tmp_path / "steps.json", tmp_path / "kernels.txt"
    status, output = run(
        capsys,
        f"steps --config tiny --device cpu --rounds 3 --profiles 1 --json {file} --kernels",
        kernels,
    )
    assert status == 0
    kinds = {row["kind"] for row in json.loads(file.read_text())["rows"] if "kind" in row}
    assert {"qkv", "self-attention", "seams", "swiglu", "sum", "step, unprofiled"} <= kinds
    assert "inside step 0" in output
    assert "aten::mm" in kernels.read_text()


def test_ops(tmp_path, capsys):
    file = tmp_path / "ops.json"
    status, output = run(
        capsys,
        "ops --ops adaln_modulate gated_residual gated_residual_adaln --shapes 1x7x64 2x5x48"
        " --dtype fp32 bf16 --device cpu --backward --no-compile"
        " --rounds 5 --seconds 0.05 --json",
        file,
    )
    assert status == 0
    read = json.loads(file.read_text())
    assert len(read["summary"]) == 3 * 2 * 2 * 2
    assert {"eager", "presto reference", "copy"} <= {row["implementation"] for row in read["rows"]}
    auto = [row for row in read["rows"] if row["auto"]]
    assert len(auto) == len(read["summary"])
    assert all(row["gbs"] == pytest.approx(row["bytes"] / row["ms_p50"] / 1e6) for row in read["rows"])
    assert "gated_residual_adaln 2x5x48 bf16 backward" in output


@pytest.mark.slow
def test_ops_with_torch_compile(tmp_path, capsys):
    file = tmp_path / "ops.json"
    status, _ = run(
        capsys,
        "ops --shapes 1x7x64 --ops adaln_modulate --device cpu --backward --rounds 5 --seconds 0.05 --json",
        file,
    )
    read = json.loads(file.read_text())
    assert (status, read["refused"]) == (0, [])
    assert all(figures["compile_over_presto"] > 0 for figures in read["summary"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("ops --shapes 3x4", "--shapes"),
        ("ops --ops softmax", "invalid choice"),
        ("latency --config huge", "invalid choice"),
        ("latency --steps 0", "--steps"),
        ("latency --batch 2 2", "--batch"),
        ("latency --length -1", "--length"),
        ("latency --checkpoint nowhere", "no checkpoint 'nowhere'"),
        ("steps --step 9 --config tiny", "--step"),
        ("nothing", "invalid choice"),
    ],
)
def test_a_bad_command_line_says_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert message in f"{stopped.value} {capsys.readouterr().err}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_its_options(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"python -m bench {command}" in capsys.readouterr().out


def test_the_overview_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert set(COMMANDS) <= set(re.findall(r"[a-z]+", capsys.readouterr().out))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_asking_for_a_gpu_where_there_is_none_says_so():
    with pytest.raises(SystemExit, match="--device cuda"):
        main(["ops", "--device", "cuda"])


def test_the_console_is_as_wide_as_promised():
    assert show.console.width == 100
