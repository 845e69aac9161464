"""The table of methods on a small folder: what is kept, what is left out, and what people see of it."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("soundfile")
pytest.importorskip("auraloss")
pytest.importorskip("scipy")

from presto_models.data.audio_files import write_audio
from presto_models.metrics.method_rows import NetworkUse, Row
from presto_models.metrics.methods import MethodsOptions, measure
from presto_models.metrics.musicnn import MusicNNOutput

RATE, SECONDS = 8000, 1.0
HERTZ = {"low": 200.0, "high": 900.0}


def tone(kind, seed, samples=int(1.2 * RATE)):
    """A note near the kind's frequency, in a little noise."""
    rng = np.random.default_rng(seed)
    hertz = HERTZ[kind] * rng.uniform(0.9, 1.1)
    wave = np.sin(2 * np.pi * hertz * np.arange(samples) / RATE) + 0.3 * rng.standard_normal(samples)
    return torch.from_numpy(0.2 * wave).float()


class Bands:
    """Ears without a network: the levels of eight bands of each half second, in dB."""

    tag_names = tuple(f"band {index}" for index in range(8))

    def __init__(self):
        self.heard = 0

    def analyse(self, audio, sample_rate):
        self.heard += 1
        halves = audio.unfold(1, sample_rate // 2, sample_rate // 2)  # [1, 2, T]
        power = torch.fft.rfft(halves).abs().square()[..., 1:1001].unflatten(-1, (8, 125)).mean(-1)
        levels = torch.log10(power + 1e-3)
        return MusicNNOutput(levels.sigmoid(), levels, levels)


class Rounded:
    sample_rate, audio_channels = RATE, 1

    def encode(self, audio):
        return (audio * 16).round()

    def decode(self, latents):
        return latents / 16


class Tones:
    """Plays what the prompt says, the same for every seed where it is told to."""

    autoencoder = Rounded()

    def __init__(self, row, asked):
        self.row, self.asked = row, asked

    def generate(self, prompts, seed):
        self.asked.append((self.row.name, len(prompts), seed))
        if self.row.checkpoint == "broken":
            return torch.full((len(prompts), 1, RATE), torch.nan), RATE
        waves = [
            tone(prompt.split()[0], [0 if self.row.checkpoint == "stuck" else seed + index, 7], RATE)
            for index, prompt in enumerate(prompts)
        ]
        return torch.stack(waves)[:, None], RATE

    def time(self, prompt, seed):
        steps = 10.0 * (self.row.changes.get("steps") or 1)
        return {"pipeline_ms": steps + 10, "steps_ms": steps}

    def use(self):
        return NetworkUse(3, 6, 10, 12)

    def settings(self):
        return {"sampling": {}, "schedule": None}


class Troupe:
    device = torch.device("cpu")

    def __init__(self):
        self.asked = []

    def weights(self, row):
        if row.checkpoint == "missing":
            raise FileNotFoundError("no checkpoint 'missing'")
        return {"diffusion.safetensors": row.checkpoint}

    def load(self, row):
        return Tones(row, self.asked)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("music")
    for number, (split, count) in enumerate((("train", 12), ("validation", 8), ("test", 8))):
        for index in range(count):
            kind = ("low", "high")[index % 2]
            path = root / split / f"{split}-{index}.wav"
            write_audio(path, tone(kind, [number, index])[None], RATE)
            described = {"captions": [f"{kind} note {index}"], "tags": {"pitch": kind}, "piece": f"{split}-{index}"}
            path.with_suffix(".json").write_text(json.dumps(described))
    return root


@pytest.fixture
def small(folder, tmp_path):
    return MethodsOptions(
        out=str(tmp_path / "result.json"),
        data=str(folder),
        clips=8,
        seconds=SECONDS,
        batch=4,
        prompts=3,
        seeds=3,
        training_clips=12,
        tags=("pitch",),
        resamples=20,
        shrinkage=0.1,
        time_rounds=3,
    )


TEACHER = Row("teacher", "teacher", "owed", "the base", changes={"steps": 9})
FAST = Row("fast", "student", "owed", changes={"steps": 1})
STUCK = Row("stuck", "stuck", "ablation")


def names(result):
    return [entry["name"] for entry in result["rows"] if "left_out" not in entry]


def left_out(result):
    return {entry["name"]: entry["left_out"] for entry in result["rows"] if "left_out" in entry}


def test_a_table_from_end_to_end(small):
    players, rows = Troupe(), [TEACHER, FAST, STUCK, Row("gone", "missing"), Row("nan", "broken")]
    result = measure(small, rows, players, Bands())
    assert json.loads(open(small.out).read()) == json.loads(json.dumps(result))
    assert names(result) == ["teacher", "fast", "stuck"]
    assert left_out(result)["gone"] == "no checkpoint 'missing'" and "not finite" in left_out(result)["nan"]
    teacher, fast, stuck = result["rows"][:3]
    assert stuck["diversity"]["value"] == pytest.approx(0, abs=1e-6) and teacher["diversity"]["value"] > 0.01
    assert fast["time"]["speedup"]["value"] == 100 / 20 and teacher["time"]["speedup"]["value"] == 1
    assert (fast["time"]["pipeline_ms"], fast["time"]["steps_ms"]) == (20, 10)
    assert teacher["network"] == {"calls": 3, "evaluations": 6, "blocks": 10, "of_blocks": 12}
    assert teacher["agreement"]["pitch"]["accuracy"]["value"] == 1 and 0 <= teacher["coverage"] <= 1
    references = {entry["name"]: entry for entry in result["references"]}
    assert list(references) == ["test", "validation", "reconstruction", "noise"]
    assert (
        max(references["reconstruction"]["fad"]["value"], teacher["fad"]["value"]) < references["noise"]["fad"]["value"]
    )
    assert teacher["fad"]["low"] <= teacher["fad"]["value"] <= teacher["fad"]["high"]
