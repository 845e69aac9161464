"""A whole evaluation of a small folder, with a function that generates and an autoencoder of a few lines."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("soundfile")
pytest.importorskip("torchmetrics")
pytest.importorskip("auraloss")

from presto_models.data.audio_files import write_audio
from presto_models.metrics.clips import choose_clips
from presto_models.metrics.evaluate import EvaluateOptions, measure
from presto_models.metrics.generated import generate_clips
from presto_models.metrics.report import draw, show

RATE = 16_000
SECONDS = 3.0


def music(kind, seed, samples=54_400):
    """Four random notes a second, plucked or held."""
    rng = np.random.default_rng(seed)
    wave = np.zeros(samples)
    for start in range(0, samples, RATE // 4):
        t = np.arange(samples - start) / RATE
        hertz = 110 * 2 ** (rng.integers(0, 25) / 12)
        partials = sum(
            np.sin(2 * np.pi * hertz * n * t) / n for n in ((1, 2, 3, 4, 5) if kind == "plucked" else (1, 2, 4))
        )
        wave[start:] += partials * (np.exp(-t / 0.1) if kind == "plucked" else (t < 0.25))
    return torch.from_numpy(0.1 * wave).float()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("music")
    for number, (split, count) in enumerate((("train", 14), ("validation", 8), ("test", 8))):
        for index in range(count):
            kind = ("plucked", "held")[index % 2]
            path = root / split / f"{split}-{index}.wav"
            write_audio(path, music(kind, [number, index])[None], RATE)
            tag = ["plucked", "held"] if (split, index) == ("test", 0) else kind  # several: not judged
            described = {"captions": [f"{kind} notes", kind], "tags": {"instrument": tag}, "piece": f"{split}-{index}"}
            path.with_suffix(".json").write_text(json.dumps(described))
    return root


class EightBits:
    """An autoencoder whose latents are the samples rounded to 8 bits."""

    sample_rate, audio_channels = RATE, 1

    def encode(self, audio):
        return (audio * 128).round().transpose(1, 2)

    def decode(self, latents):
        return latents.transpose(1, 2) / 128


class Player:
    """Generates what the prompt says and counts how often it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, seed):
        self.asked.append((tuple(prompts), seed))
        waves = [
            music(prompt.split()[0], [9, seed, index], round(SECONDS * RATE)) for index, prompt in enumerate(prompts)
        ]
        return torch.stack(waves)[:, None].expand(-1, 2, -1), RATE


@pytest.fixture
def small(folder, tmp_path):
    return EvaluateOptions(
        data=str(folder),
        out=str(tmp_path / "result.json"),
        clips=8,
        seconds=SECONDS,
        batch=3,
        training_clips=14,
        tags=("instrument",),
        resamples=20,
        shrinkage=0.1,  # 8 patches in 200 dimensions
    )


def test_an_evaluation_from_end_to_end(small, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    player = Player()
    result = measure(small, player, EightBits(), identity={"diffusion.safetensors": "1"})
    json.dumps(result)
    assert [len(prompts) for prompts, _ in player.asked] == [3, 3, 2] and [seed for _, seed in player.asked] == [
        0,
        3,
        6,
    ]
    for found in result["distances"].values():
        at = {name: interval["value"] for name, interval in found["to_reference"].items()}
        assert at["reconstruction"] < at["noise"] and at["generated"] < at["noise"]
        assert found["within_goal"] == (found["ratio"]["value"] <= 0.4)
    assert result["reconstruction"]["si_sdr"]["value"] > 15
    assert set(result["agreement"]["instrument"]) == {"test", "reconstruction", "generated"}
    assert result["agreement"]["instrument"]["test"]["accuracy"]["value"] > 0.6
    assert result["agreement"]["instrument"]["test"]["clips"] == 7
    assert set(result["heard"]) == {"test", "validation", "reconstruction", "generated", "noise", "train"}

    show(result)
    assert "Is the instrument asked for heard?" in capsys.readouterr().out
    draw(result, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert not list(tmp_path.glob(".*"))


def test_too_few_clips_say_how_many_there_are(small):
    with pytest.raises(ValueError, match=r"has 8 files of at least 3 s with the tags .* in test, 9 are asked for"):
        measure(replace(small, clips=9), Player(), EightBits(), identity={})
    with pytest.raises(ValueError, match="too short"):
        measure(replace(small, seconds=60.0), Player(), EightBits(), identity={})
    with pytest.raises(FileNotFoundError):
        measure(replace(small, data="nowhere"), Player(), EightBits(), identity={})


def test_fad_of_too_few_patches_is_refused_before_anything_is_generated(small):
    player = Player()
    with pytest.raises(ValueError, match="test has 8 embeddings of 200 dimensions"):
        measure(replace(small, shrinkage=0.0), player, EightBits(), identity={})
    assert not player.asked


def test_clips_are_seeded_and_of_one_length(folder):
    first, again, other = (choose_clips(folder, "train", 10, SECONDS, seed=seed) for seed in (1, 1, 2))
    assert first == again != other and len({clip.path for clip in first}) == 10
    assert {len(clip.read(RATE)) for clip in first} == {48_000} and len(first[0].read(44_100)) == 132_300
    assert first[0].caption.endswith("notes") and first[0].tags["instrument"] in (
        "plucked",
        "held",
        ["plucked", "held"],
    )


def test_generated_clips_resume_by_batch(tmp_path):
    player = Player()
    prompts = ["held a", "plucked b", "held c", "held d"]

    def make(**changes):
        given = {"settings": {"steps": 4}, "seed": 5, "batch": 2} | changes
        return list(generate_clips(player, prompts, tmp_path, **given))

    paths = make()
    before = [path.read_bytes() for path in paths]
    paths[3].unlink()  # as if stopped there
    assert make() == paths and [path.read_bytes() for path in paths] == before
    assert player.asked[2:] == [(("held c", "held d"), 7)]
    make(settings={"steps": 8})
    assert len(player.asked) == 5


def test_a_generator_that_gives_something_else_is_named(tmp_path):
    def wrong(prompts, seed):
        return torch.zeros(len(prompts) + 1, 1, 100), RATE

    def broken(prompts, seed):
        return torch.full((len(prompts), 1, 100), torch.nan), RATE

    for generate, message in ((wrong, r"\[2, channels, samples\]"), (broken, "not finite")):
        with pytest.raises(ValueError, match=message):
            list(generate_clips(generate, ["a", "b"], tmp_path, settings={}, seed=0, batch=2))
    assert not list(tmp_path.iterdir())
