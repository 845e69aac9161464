"""The control commands, from what a person types to files."""

import itertools
import json
import os
import re
from pathlib import Path

import pytest
import soundfile
import torch
from small_pipeline import WordEncoder, small_pipeline

from presto_models import __main__ as command_line
from presto_models import pipeline
from presto_models.data.audio_files import write_audio
from presto_models.ditto import DittoOptions, optimize, solver
from presto_models.ditto.search import Search, load_noise

pytest.importorskip("tyro")
RATE = 8000
EXAMPLES = Path(__file__).parents[3] / "docs" / "control"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a student that generates in milliseconds, a recording of 2 s, a curve and a melody."""
    monkeypatch.setattr("presto_models.text.conditioner.load_text_encoder", lambda *_, **__: WordEncoder())
    monkeypatch.chdir(tmp_path)
    small_pipeline(sampler="pingpong", steps=2, guidance=1.0).save_pretrained("small")
    time = torch.arange(2 * RATE) / RATE
    tone = 0.3 * torch.sin(2 * torch.pi * 523.25 * time) * (1 + torch.sin(2 * torch.pi * time)) / 2
    write_audio("tone.wav", tone[None], RATE)
    Path("curve.csv").write_text("seconds,db\n0,-40\n2,-20\n")
    Path("melody.csv").write_text("seconds,note\n0,C5\n1,G5\n")
    return tmp_path


INPUTS = ["curve.csv", "melody.csv", "small", "tone.wav"]


def control(words: str, *, steps: int = 2) -> int:
    common = f"--prompt organ --seed 1 --steps {steps} --checkpoint small --device cpu --learning-rate 0.05"
    return command_line.main(["control", *words.split(), *common.split()])


COMMANDS = {
    "intensity": ("intensity --curve curve.csv --seconds 2", "intensity", 2.0),
    "melody": ("melody --melody melody.csv --seconds 2", "melody", 2.0),
    "structure": ("structure --form AB --seconds 3", "structure", 3.0),
    "transfer": ("transfer --reference tone.wav --seconds 2", "structure", 2.0),
    "outpaint": ("outpaint --reference tone.wav --overlap 0.5 --seconds 1.5", "outpaint", None),
    "inpaint": ("inpaint --reference tone.wav --gap 0.8 1.2 --overlap 0.5", "inpaint", 2.0),
    "loop": ("loop --overlap 0.5 --seconds 2", "loop", None),
    "invert": ("invert --reference tone.wav", "inversion", 2.0),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_writes_a_piece_and_a_picture_and_says_so(folder, capsys, name):
    words, control_name, seconds = COMMANDS[name]
    assert control(f"{words} --out new/out.wav --surrogate-steps 1 --json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["command"] == name and said["files"] == ["new/out.wav"] and said["plots"] == ["new/out.png"]
    (about,) = said["controls"].values()
    assert list(said["controls"]) == [control_name]
    assert all(len(about[key]) == 1 and about[key][0] >= 0 for key in ("error", "before", "drift"))
    assert said["steps"] == 2 and said["surrogate_steps"] == 1 and said["sampling_steps"] == 2
    info = soundfile.info("new/out.wav")
    if seconds is not None:
        assert info.frames == seconds * RATE
    assert Path("new/out.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(os.listdir("new")) == ["out.png", "out.wav"] and sorted(os.listdir()) == sorted([*INPUTS, "new"])


def test_candidates_are_written_best_first(folder, capsys):
    assert control("intensity --curve swell --seconds 1 --num-samples 3 --out a.flac --json") == 0
    said = json.loads(capsys.readouterr().out)
    errors = said["controls"]["intensity"]["error"]
    assert errors == sorted(errors) and len(set(errors)) == 3 and sorted(said["seeds"]) == [1, 2, 3]
    assert said["files"] == ["a-1.flac", "a-2.flac", "a-3.flac"] and said["plots"] == ["a-1.png", "a-2.png", "a-3.png"]
    # Each file is its own seed's, which alone gives the same music.
    best = said["seeds"][0]
    common = "--prompt organ --steps 2 --checkpoint small --device cpu --learning-rate 0.05 --no-plot --out b.flac"
    words = f"control intensity --curve swell --seconds 1 --seed {best} {common}".split()
    assert command_line.main(words) == 0
    one, other = (torch.from_numpy(soundfile.read(path)[0]) for path in ("a-1.flac", "b.flac"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
    assert not Path("b.png").exists()


def test_what_a_person_reads(folder, capsys):
    words = "intensity --curve curve.csv --seconds 1 --threshold 1e9 --no-plot --surrogate-steps 1"
    assert control(f"{words} --out a.wav --save a.state") == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("intensity: error ") and "without control" in first and "drift" in first
    assert "good enough after 0" in second and "DITTO-2 through 1 for 2 steps of ddim" in second
    assert third == "a.wav, a.state (seed 1)"


def test_several_controls_at_once(folder, capsys):
    words = "intensity --curve curve.csv --melody melody.csv --form AB --also-weight 0.5 --seconds 3 --out a.wav"
    assert control(f"{words} --json") == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said["controls"]) == ["intensity", "melody", "structure"] and said["surrogate_steps"] is None
    assert all(about["drift"] is None for about in said["controls"].values())
    assert "accuracy" in said["controls"]["melody"]["figures"]


def test_an_outpainted_piece_begins_as_the_recording(folder, capsys):
    words = "outpaint --reference tone.wav --overlap 0.5 --seconds 1.5 --part part.wav --out a.wav --stereo --json"
    assert control(words) == 0
    said = json.loads(capsys.readouterr().out)
    piece, recording = soundfile.read("a.wav")[0], soundfile.read("tone.wav")[0]
    ((seam,),) = said["seams"]
    assert 1.4 < seam["seconds"] < 2.0 and piece.shape[1] == 2
    scale = min(1.0, abs(piece).max())  # a loud continuation makes all of it quieter
    if scale < 0.999:
        assert abs(piece[: int(1.4 * RATE)] - recording[: int(1.4 * RATE), None]).max() < 1e-3
    assert soundfile.info("part.wav").frames == 1.5 * RATE and said["parts"] == ["part.wav"]


def test_a_loop_is_written_as_often_as_asked(folder, capsys):
    for reference in ("", "--reference tone.wav"):
        for repeat in (1, 3):
            words = f"loop {reference} --overlap 0.4 --seconds 2 --repeat {repeat} --out {repeat}.wav --no-plot"
            assert control(words) == 0
        one, three = (soundfile.read(f"{repeat}.wav")[0] for repeat in (1, 3))
        assert len(three) == 3 * len(one) and (three == [*one, *one, *one]).all()


def test_a_search_that_was_killed_goes_on(folder, monkeypatch, capsys):
    words = "intensity --curve curve.csv --seconds 1 --no-plot"
    assert control(f"{words} --out whole.wav --save whole.state", steps=6) == 0
    ticks = itertools.count(step=10.0)
    step, made = Search.step, []

    def killed(self):
        made.append(self)
        if len(made) == 4:
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(solver.time, "monotonic", lambda: next(ticks))  # a save at every step
        patch.setattr(Search, "step", killed)
        assert control(f"{words} --out a.wav --save a.state", steps=6) == 130
    assert not Path("a.wav").exists() and Path("a.state").exists()
    capsys.readouterr()
    counted = []
    monkeypatch.setattr(Search, "step", lambda self: (counted.append(1), step(self))[1])
    assert control(f"{words} --out a.wav --save a.state --resume --json", steps=6) == 0
    assert len(counted) == 3 and json.loads(capsys.readouterr().out)["steps"] == 6
    assert Path("a.wav").read_bytes() == Path("whole.wav").read_bytes()
    assert control(f"{words} --out b.wav --save a.state --resume --rho 5", steps=6) == 1
    assert "rho" in capsys.readouterr().err and not Path("b.wav").exists()


def test_an_edit_begins_where_the_last_one_ended(folder, capsys):
    assert control("intensity --curve curve.csv --seconds 1 --save a.state --no-plot --out a.wav", steps=5) == 0
    assert control("intensity --curve curve.csv --seconds 1 --start a.state --save b.state --no-plot", steps=0) == 0
    assert torch.equal(load_noise("a.state"), load_noise("b.state"))


MISTAKES = {
    "curve none.csv": ("intensity --curve none.csv", "curve: there is no file none.csv"),
    "curve with NaN": ("intensity --curve nan.csv", "nan.csv, line 3: db"),
    "curve without a header": ("intensity --curve tone.wav", "tone.wav"),
    "melody": ("melody --melody bad.csv", "bad.csv, line 2: note"),
    "melody none.wav": ("melody --melody none.wav", "melody: there is no file none.wav"),
    "melody of no audio": ("melody --melody text.wav", "melody: cannot read text.wav"),
    "form": ("structure --form A?A --seconds 2", "form must be"),
    "reference": ("transfer --reference none.wav", "reference: there is no file none.wav"),
    "reference of no audio": ("outpaint --reference text.wav", "reference: cannot read text.wav"),
    "overlap": ("outpaint --reference tone.wav --overlap 2.5 --seconds 3", "reference must last at least"),
    "excerpt": ("outpaint --reference tone.wav --excerpt 1 5 --seconds 2", "excerpt must be"),
    "gap": ("inpaint --reference tone.wav --gap 1 5", "gap must lie inside"),
    "repeat": ("loop --repeat 0", "repeat must be at least 1"),
    "seconds": ("loop --overlap 0.5 --seconds 9", "seconds must be at most 3"),
    "two structures": ("transfer --reference tone.wav --form AB --seconds 3", "contradict each other"),
    "steps": ("loop --overlap 0.5 --seconds 1 --sampling-steps 0", "sampling_steps"),
    "weight": ("loop --overlap 0.5 --seconds 1 --weight -1", "weight must be above 0"),
    "candidates": ("loop --num-samples 0", "num_samples must be at least 1"),
    "start": ("loop --overlap 0.5 --seconds 1 --start tone.wav", "tone.wav"),
    "resume": ("loop --overlap 0.5 --seconds 1 --resume", "save="),
    "tags": ("loop --overlap 0.5 --seconds 1 --tags minor", "field=value"),
    "out": ("loop --out a.aiff", "out must end in"),
    "plot": ("loop --plot a.txt", "plot must end in"),
    "part": ("loop --part a.txt", "part must end in"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(folder, capsys, monkeypatch, name):
    Path("nan.csv").write_text("seconds,db\n0,-20\n1,nan\n")
    Path("bad.csv").write_text("seconds,note\n0,H5\n")
    Path("text.wav").write_text("no audio")
    before = sorted(os.listdir())
    monkeypatch.setattr(Search, "step", lambda self: pytest.fail("it made a step"))
    words, message = MISTAKES[name]
    assert control(words) == 1
    said = capsys.readouterr()
    assert message in said.err and said.err.startswith("presto: ") and len(said.err.splitlines()) == 1
    assert sorted(os.listdir()) == before and not said.out


def test_nan_is_not_music(folder, capsys, monkeypatch):
    decode = pipeline.Engine.decode
    monkeypatch.setattr(pipeline.Engine, "decode", lambda self, x: decode(self, x * float("nan")))
    assert control("loop --overlap 0.5 --seconds 1") == 1
    assert "NaN or infinite" in capsys.readouterr().err and sorted(os.listdir()) == INPUTS


def test_what_is_too_loud_is_made_quieter(folder, capsys, monkeypatch):
    decode = pipeline.Engine.decode
    monkeypatch.setattr(pipeline.Engine, "decode", lambda self, x: 50 * decode(self, x))
    assert control("loop --overlap 0.5 --seconds 1 --out a.wav --no-plot") == 0
    audio, _ = soundfile.read("a.wav")
    assert 0.99 < abs(audio).max() <= 1 and "a.wav was made quieter" in capsys.readouterr().err


def test_the_inputs_of_the_documentation(folder, capsys):
    assert (
        control(f"intensity --curve {EXAMPLES / 'crescendo.csv'} --melody {EXAMPLES / 'melody.csv'} --seconds 2") == 0
    )


def test_the_control_of_ones_own_in_the_documentation():
    page = (EXAMPLES.parent / "control.md").read_text()
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class Brightness" in block)
    written: dict = {"__name__": "documentation"}
    exec(compile(block, "control.md", "exec"), written)
    options = DittoOptions(steps=20, learning_rate=0.05)
    made = optimize(
        small_pipeline(sampler="pingpong", steps=2, guidance=1.0),
        written["Brightness"](share=0.3),
        prompt="organ",
        seconds=0.5,
        seed=0,
        options=options,
    )
    outcome = made.outcomes["brightness"]
    assert outcome.error < 0.9 * outcome.before  # random weights follow little
