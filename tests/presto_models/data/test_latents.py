"""Encoding a folder, going on after a kill, and crops of latents."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from presto_models.data.audio_files import read_audio, write_audio
from presto_models.data.encode import encode_folder
from presto_models.data.latents import LatentDataset

pytest.importorskip("soundfile")

RATE, HOP, CHANNELS = 8_000, 400, 5


class Frames(nn.Module):
    """A linear autoencoder of frames: small, and its latents can be worked out by hand."""

    sample_rate, audio_channels, latent_channels, hop = RATE, 1, CHANNELS, HOP

    def __init__(self, seed: int = 0, scale: float = 0.1):
        super().__init__()
        made = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(scale * torch.randn(HOP, CHANNELS, generator=made))
        self.calls = 0

    def encode(self, audio):
        self.calls += 1
        frames = nn.functional.pad(audio[:, 0], (0, -audio.shape[-1] % HOP)).unflatten(1, (-1, HOP))
        return frames @ self.weight + 1


@pytest.fixture
def data(tmp_path):
    made = torch.Generator().manual_seed(1)
    for number in range(7):
        split = "test" if number == 6 else "validation" if number == 5 else "train"
        path = tmp_path / "data" / split / f"clip{number}.wav"
        write_audio(path, torch.rand(2, 4000 + 1700 * number, generator=made) - 0.5, RATE)
        path.with_suffix(".json").write_text(
            json.dumps({"captions": [f"first {number}", "second"], "tags": {"n": number}})
        )
    return tmp_path / "data"


def everything(out):
    return {key: value for path in sorted(out.glob("*.safetensors")) for key, value in load_file(path).items()}


def test_latents_are_those_of_the_autoencoder_with_their_statistics(data, tmp_path):
    autoencoder = Frames()
    index = encode_folder(autoencoder, data, tmp_path / "out", dtype="float32")
    stored = everything(tmp_path / "out")
    assert len(index["clips"]) == len(stored) == 7
    training = []
    for clip in index["clips"]:
        audio = read_audio(data / f"{clip['id']}.wav", sample_rate=RATE, channels=1)
        latents = autoencoder.encode(audio[None])[0]
        assert torch.equal(stored[clip["id"]], latents) and clip["latents"] == len(latents)
        assert clip["captions"][1] == "second" and clip["split"] == clip["id"].split("/")[0]
        training += [latents.double()] if clip["split"] == "train" else []
    joined = torch.cat(training)
    assert torch.allclose(torch.tensor(index["mean"]).double(), joined.mean(0), atol=1e-6)
    assert torch.allclose(torch.tensor(index["std"]).double(), joined.std(0, correction=0), atol=1e-6)
    assert index["silence"] == pytest.approx([1.0] * CHANNELS)
    assert json.loads((tmp_path / "out" / "index.json").read_text()) == index


def test_small_shards_and_a_kill_between_them_change_nothing(data, tmp_path):
    whole = encode_folder(Frames(), data, tmp_path / "whole")
    small = encode_folder(Frames(), data, tmp_path / "small", shard_megabytes=4e-4)
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 2

    class Killed(Frames):
        def encode(self, audio):
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().encode(audio)

    with pytest.raises(KeyboardInterrupt):
        encode_folder(Killed(), data, tmp_path / "killed", shard_megabytes=4e-4)
    assert not (tmp_path / "killed" / "index.json").exists()
    after = Frames()
    resumed = encode_folder(after, data, tmp_path / "killed", shard_megabytes=4e-4)
    assert after.calls < 7
    assert resumed == small
    same = everything(tmp_path / "whole")
    for out in ("small", "killed"):
        assert all(torch.equal(value, same[key]) for key, value in everything(tmp_path / out).items())
    assert whole["mean"] == pytest.approx(small["mean"]) and len(whole["clips"]) == len(small["clips"])


def test_long_files_are_encoded_in_pieces(data, tmp_path):
    index = encode_folder(Frames(), data, tmp_path / "out", max_seconds=1.0, dtype="float32")
    whole = encode_folder(Frames(), data, tmp_path / "whole", dtype="float32")
    pieces, clips = everything(tmp_path / "out"), everything(tmp_path / "whole")
    assert max(clip["seconds"] for clip in index["clips"]) == 1.0
    assert torch.equal(pieces["train/clip4"], clips["train/clip4"][:20])
    assert len(index["clips"]) < 2 * len(whole["clips"])


def test_other_weights_settings_and_bad_latents_are_refused(data, tmp_path):
    encode_folder(Frames(), data, tmp_path / "out")
    for autoencoder, options in ((Frames(seed=1), {}), (Frames(), {"dtype": "bfloat16"})):
        with pytest.raises(ValueError, match="other weights or settings"):
            encode_folder(autoencoder, data, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="not finite in float16"):
        encode_folder(Frames(scale=1e6), data, tmp_path / "big")
    with pytest.raises(ValueError, match="dtype: 'int8'"):
        encode_folder(Frames(), data, tmp_path / "x", dtype="int8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="nothing usable"):
        encode_folder(Frames(), tmp_path / "empty", tmp_path / "x")


def test_crops_are_deterministic_parts_with_their_captions(data, tmp_path):
    encode_folder(Frames(), data, tmp_path / "out", shard_megabytes=4e-4)
    dataset = LatentDataset(tmp_path / "out", "train", latents=8, seed=0, length=100)
    again = pickle.loads(pickle.dumps(LatentDataset(tmp_path / "out", "train", latents=8, seed=0, length=100)))
    clips, starts = set(), set()
    for i, crop in enumerate(dataset):
        clip = dataset.clips[crop["item"]]
        assert crop["latents"].shape == (8, CHANNELS) and crop["latents"].dtype == torch.float32 and crop["valid"] == 8
        windows = dataset.whole(crop["item"]).unfold(0, 8, 1).transpose(1, 2)
        found = (windows == crop["latents"]).all(-1).all(-1)
        assert found[crop["start"]] and crop["caption"] in clip["captions"] and clip["split"] == "train"
        clips.add(clip["id"])
        starts.add((clip["id"], int(found.nonzero()[0])))
        if i % 9 == 0:
            assert torch.equal(again[i]["latents"], crop["latents"]) and again[i]["caption"] == crop["caption"]
    assert len(clips) == 5 and len(starts) > 20
    assert (
        len(LatentDataset(tmp_path / "out", "train", latents=8, seed=0))
        == sum(c["latents"] for c in dataset.clips) // 8
    )


def test_a_short_clip_is_followed_by_silence(data, tmp_path):
    encode_folder(Frames(), data, tmp_path / "out")
    dataset = LatentDataset(tmp_path / "out", "train", latents=25, seed=0, length=60)
    short = next(crop for crop in dataset if crop["valid"] < 25)
    assert torch.allclose(short["latents"][short["valid"] :], torch.ones(1))
    assert torch.equal(short["latents"][: short["valid"]], dataset.whole(short["item"]))


def test_what_is_missing_is_said(data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no index\.json"):
        LatentDataset(tmp_path, "train", latents=8, seed=0)
    encode_folder(Frames(), data / "test", tmp_path / "out")
    with pytest.raises(ValueError, match="split: 'dev'"):
        LatentDataset(tmp_path / "out", "dev", latents=8, seed=0)
    with pytest.raises(ValueError, match="latents: 0"):
        LatentDataset(tmp_path / "out", "train", latents=0, seed=0)
