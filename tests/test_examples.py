"""The examples run as they stand, small and random; and what the README shows of them is in them."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import soundfile
from safetensors.torch import load_file

from bench.open_models import peers

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def run(name, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with peers.stood_in():  # what stable-audio-tools imports and does not use here
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["diffusers_pipeline", "stable_audio_tools_generation"])
def test_a_pipeline_makes_the_same_audio_accelerated(name, monkeypatch, capsys, tmp_path):
    if name.startswith("stable_audio_tools"):
        pytest.importorskip("stable_audio_tools", reason="stable-audio-tools is not installed")
    said = run(name, monkeypatch, capsys, "--steps", "4", "--seconds", "0.5", "--out", str(tmp_path / "out.wav"))
    assert "accelerated: " in said and "calls that ran as the original" not in said
    apart = float(re.search(r"at most (\S+) apart", said).group(1))
    audio, rate = soundfile.read(tmp_path / "out.wav")
    assert rate == 44100 and abs(audio).max() > 1e-3
    assert apart <= 1e-3 * abs(audio).max()


def test_lora_learns_through_the_fused_backward(monkeypatch, capsys, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed")
    said = run(
        "lora", monkeypatch, capsys, "--steps", "30", "--lr", "0.01", "--out", str(tmp_path / "lora.safetensors")
    )
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", said)]
    assert losses[-1] < losses[0]
    assert any("lora_B" in name for name in load_file(tmp_path / "lora.safetensors"))


def test_the_readme_names_every_example():
    readme = (ROOT / "README.md").read_text()
    assert all(f"examples/{name}.py" in readme for name in EXAMPLES)
