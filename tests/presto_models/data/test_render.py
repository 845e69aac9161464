"""Rendering tiny scores end to end: the same clips for any number of workers, killed in between or not."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from presto_models.data.audio_files import read_audio
from presto_models.data.render import RenderOptions, render_pieces, run
from presto_models.data.synth import LOUDNESS, PEAK, find_soundfont

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("music21")

HOURS = 0.03


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("t*/*"))}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory, pieces, soundfont):
    out = tmp_path_factory.mktemp("rendered")
    return out, render_pieces(pieces, soundfont, RenderOptions(out=str(out), hours=HOURS, workers=1))


@pytest.mark.slow
def test_clips_are_stereo_at_one_loudness_and_described(rendered):
    out, summary = rendered
    clips = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert summary["clips"] == len(clips) >= 4
    assert sum(clip["seconds"] for clip in clips) >= HOURS * 3600
    assert {clip["split"] for clip in clips} == {"train", "test"}
    assert all(clip["piece"] == "oneills1850-009" for clip in clips if clip["split"] == "test")
    sides = []
    for clip in clips:
        assert json.loads((out / clip["file"]).with_suffix(".json").read_text()) == clip
        assert soundfile.info(out / clip["file"]).subtype == "PCM_16"
        sound = read_audio(out / clip["file"], sample_rate=44_100, channels=2).numpy()
        assert sound.shape == (2, round(clip["seconds"] * 44_100))
        level = np.sqrt(np.mean(sound**2))
        assert level == pytest.approx(LOUDNESS, rel=0.02) or np.abs(sound).max() == pytest.approx(PEAK, abs=1e-3)
        sides.append(np.abs(sound[0] - sound[1]).max())
    assert max(sides) > 0.02


@pytest.mark.slow
def test_bad_scores_are_skipped_and_counted(rendered):
    out, summary = rendered
    assert summary["skipped"] == {"no notes": 1}
    assert summary["skipped_pieces"] == {"oneills1850-bad": "no notes"}
    assert json.loads((out / "summary.json").read_text()) == summary


@pytest.mark.slow
def test_other_workers_give_the_same_clips(rendered, tmp_path, pieces, soundfont):
    render_pieces(pieces, soundfont, RenderOptions(out=str(tmp_path), hours=HOURS, workers=3))
    assert contents(tmp_path) == contents(rendered[0])


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_clips(rendered, tmp_path, pieces, soundfont):
    script = tmp_path / "go.py"
    script.write_text(
        "import pickle, sys\nfrom presto_models.data.render import RenderOptions, render_pieces\n"
        "if __name__ == '__main__':\n"
        "    render_pieces(*pickle.loads(open(sys.argv[1], 'rb').read()))\n"
    )
    out = tmp_path / "out"
    options = RenderOptions(out=str(out), hours=50.0, workers=1)
    (tmp_path / "job").write_bytes(pickle.dumps((pieces, soundfont, options)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.Popen([sys.executable, str(script), str(tmp_path / "job")], env=environment)
    try:
        deadline = time.monotonic() + 120
        while len(list(out.glob("train/*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    time.sleep(0.5)  # the worker follows its parent
    made = {path: path.stat().st_mtime_ns for path in out.glob("train/*.wav")}
    kept = {path: made[path] for path in made if (rendered[0] / "train" / path.name).exists()}
    assert kept
    render_pieces(pieces, soundfont, replace(options, hours=HOURS, workers=2))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    finished = contents(out)
    assert {name: finished[name] for name in contents(rendered[0])} == contents(rendered[0])
    assert not list(out.rglob(".*"))


@pytest.mark.slow
def test_splits_are_rendered_alone_and_added_to_what_is_there(tmp_path, pieces, soundfont, monkeypatch, capsys):
    for function, found in (("find_pieces", list(pieces)), ("find_soundfont", soundfont)):
        monkeypatch.setattr(f"presto_models.data.render.{function}", lambda *_, found=found, **__: found)
    first = RenderOptions(out=str(tmp_path), hours=1e-4, workers=1, splits=("train",))
    run(first)
    training = contents(tmp_path)
    assert training and not (tmp_path / "test").exists()
    run(replace(first, splits=("test",)))
    assert "skipped: none" in capsys.readouterr().out
    both = contents(tmp_path)
    assert both.items() > training.items() and all(name.startswith("test/") for name in both.keys() - training.keys())
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert {json.loads(line)["split"] for line in lines} == {"train", "test"} and 2 * len(lines) == len(both)


def test_bad_options_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="splits: tset given; choose from"):
        run(RenderOptions(out=str(tmp_path), splits=("test", "tset")))
    with pytest.raises(ValueError, match="splits: none given"):
        run(RenderOptions(out=str(tmp_path), splits=()))
    with pytest.raises(ValueError, match="hours: 0"):
        run(RenderOptions(out=str(tmp_path), hours=0))
    with pytest.raises(ValueError, match="workers: -1"):
        run(RenderOptions(out=str(tmp_path), workers=-1))
    with pytest.raises(FileNotFoundError, match="no file /nowhere"):
        run(RenderOptions(out=str(tmp_path), soundfont="/nowhere"))


def test_a_folder_of_another_seed_is_refused(tmp_path, soundfont):
    (tmp_path / "settings.json").write_text(json.dumps({"version": 1, "seed": 7, "soundfont": soundfont.name}))
    with pytest.raises(ValueError, match="choose another folder"):
        run(RenderOptions(out=str(tmp_path), soundfont=str(soundfont)))


def test_the_fallback_soundfont_is_said(monkeypatch, caplog, soundfont):
    monkeypatch.setattr("presto_models.data.synth._FOLDERS", ())
    assert find_soundfont() == soundfont
    assert "nearly mono" in caplog.text
