"""Folders of audio with captions, and crops that a seed and a number determine."""

import json

import pytest
import torch

from presto_models.data.audio_files import read_audio, write_audio
from presto_models.data.folder import AudioFolder, Crops

pytest.importorskip("soundfile")

RATE = 8_000


def put(path, seconds=2.0, level=0.5, described=None, text=None):
    wave = torch.linspace(-level, level, round(seconds * RATE)).repeat(2, 1)
    write_audio(path, wave, RATE)
    if described is not None:
        path.with_suffix(".json").write_text(described if isinstance(described, str) else json.dumps(described))
    if text is not None:
        path.with_suffix(".txt").write_text(text)
    return path


def test_captions_and_tags_come_from_json_or_text(tmp_path):
    put(tmp_path / "train" / "a.wav", described={"captions": ["one", "two"], "tags": {"mode": "minor"}, "piece": "p"})
    put(tmp_path / "train" / "deep" / "b.flac", 1.0, described={"caption": "three"})
    put(tmp_path / "train" / "c.ogg", text="four\n\nfive\n")
    put(tmp_path / "train" / "d.wav")
    folder = AudioFolder(tmp_path, split="train")
    assert [item.captions for item in folder.items] == [("one", "two"), ("four", "five"), (), ("three",)]
    assert folder.items[0].tags == {"mode": "minor"} and folder.items[0].piece == "p"
    assert folder.seconds == pytest.approx(7, abs=0.01)
    captioned = AudioFolder(tmp_path, split="train", captioned=True)
    assert len(captioned) == 3 and captioned.skipped == {"no caption": 1}


def test_splits_come_from_folders_then_json_then_a_hash_of_the_piece(tmp_path):
    put(tmp_path / "test" / "a.wav", 0.1)
    put(tmp_path / "b.wav", 0.1, described={"split": "validation"})
    for number in range(60):
        put(tmp_path / f"c{number}.wav", 0.1, described={"piece": f"tune {number // 2}"})
    items = {split: AudioFolder(tmp_path, split=split).items for split in ("train", "validation", "test")}
    assert "a" in {item.path.stem for item in items["test"]}
    assert "b" in {item.path.stem for item in items["validation"]}
    assert sum(map(len, items.values())) == 62 == len(AudioFolder(tmp_path, split=None))
    assert len(items["train"]) > 40
    pieces = [{item.piece for item in found} for found in items.values()]
    assert not pieces[0] & pieces[1] and not pieces[0] & pieces[2] and not pieces[1] & pieces[2]


def test_broken_files_are_skipped_and_counted(tmp_path, caplog):
    put(tmp_path / "good.wav", described={"caption": "fine"})
    put(tmp_path / "json.wav", described="{not json")
    put(tmp_path / "list.wav", described="[]")
    put(tmp_path / "numbers.wav", described={"captions": [1]})
    put(tmp_path / "short.wav", 0.05)
    put(tmp_path / "other.wav", described={"tags": {"collection": "x"}})
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    (tmp_path / ".good.12.wav").write_bytes(b"")
    folder = AudioFolder(tmp_path, split=None, min_seconds=0.1, without={"collection": ["x"]})
    assert [item.path.name for item in folder.items] == ["good.wav"]
    assert folder.skipped == {
        "description is no JSON": 1,
        "description is no JSON object": 1,
        "captions are no strings": 1,
        "too short": 1,
        "left out by its tags": 1,
        "no readable audio": 1,
    }
    assert "6 files skipped" in caplog.text


def test_a_folder_with_nothing_usable_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        AudioFolder(tmp_path / "missing", split="train")
    with pytest.raises(ValueError, match="no audio files"):
        AudioFolder(tmp_path, split="train")
    (tmp_path / "a.wav").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="1 no readable audio"):
        AudioFolder(tmp_path, split=None)
    with pytest.raises(ValueError, match="split: 'dev'"):
        AudioFolder(tmp_path, split="dev")


@pytest.fixture
def folder(tmp_path):
    put(tmp_path / "long.wav", 6.0, described={"captions": ["a", "b"]})
    put(tmp_path / "short.wav", 2.0, 0.1, described={"caption": "c"})
    return AudioFolder(tmp_path, split=None)


def test_crop_i_is_the_same_whatever_was_read_before(folder):
    make = {"seconds": 0.5, "channels": 1, "sample_rate": RATE, "length": 40}
    crops, again = Crops(folder, seed=1, **make), Crops(folder, seed=1, **make)
    wanted = [crops[i] for i in range(40)]
    for i in (7, 3, 39):
        assert torch.equal(again[i]["audio"], wanted[i]["audio"]) and again[i]["caption"] == wanted[i]["caption"]
    other = Crops(folder, seed=2, **make)
    assert sum(torch.equal(other[i]["audio"], wanted[i]["audio"]) for i in range(40)) < 3


def test_crops_are_parts_of_their_file_drawn_by_length(folder):
    crops = Crops(folder, seconds=0.5, channels=2, seed=0, sample_rate=RATE, length=200)
    whole = [read_audio(item.path, sample_rate=RATE, channels=2) for item in folder.items]
    share = 0
    for crop in crops:
        assert crop["audio"].shape == (2, 4000)
        name = folder.items[crop["item"]].path.stem
        share += name == "long"
        assert crop["caption"] in (("a", "b") if name == "long" else ("c",))
        starts = (whole[crop["item"]][0] == crop["audio"][0, 0]).nonzero().flatten().tolist()
        assert any(torch.equal(whole[crop["item"]][:, at : at + 4000], crop["audio"]) for at in starts)
    assert 0.6 < share / 200 < 0.9


def test_a_short_file_is_followed_by_silence_and_len_is_one_pass(folder):
    crops = Crops(folder, seconds=4.0, channels=1, seed=0, sample_rate=RATE)
    assert len(crops) == 2
    found = [Crops(folder, seconds=4.0, channels=1, seed=s, sample_rate=RATE)[0] for s in range(20)]
    short = next(crop for crop in found if crop["caption"] == "c")
    assert short["audio"].shape == (1, 4 * RATE) and not short["audio"][:, 2 * RATE :].any()
    with pytest.raises(IndexError):
        crops[2]


def test_a_file_that_breaks_later_is_counted_and_another_drawn(folder):
    (folder.root / "short.wav").write_bytes(b"gone")
    crops = Crops(folder, seconds=0.5, channels=1, seed=0, sample_rate=RATE, length=50)
    assert all(crop["caption"] in "ab" for crop in crops)
    assert crops.broken.total() > 0
    (folder.root / "long.wav").unlink()
    with pytest.raises(RuntimeError, match="files in a row"):
        crops[0]
