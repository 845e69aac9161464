"""`train stereo` on a few seconds of panned sound."""

import json

import numpy as np
import pytest
import torch

from presto_models.stereo import load_stereo
from presto_models.training.config import PRESETS, build, read
from presto_models.training.stereo import StereoTrainConfig, TrainStereoOptions, run

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("lightning")

RATE = 8000


def test_it_learns_and_exports(tmp_path):
    """Everything stands half left: the loss falls, and what is exported moves a centred sound to the left."""
    random = np.random.default_rng(0)
    for split, count in (("train", 3), ("validation", 1)):
        (tmp_path / "audio" / split).mkdir(parents=True)
        for number in range(count):
            sound = 0.2 * np.convolve(random.standard_normal(2 * RATE), np.hanning(8), "same")
            soundfile.write(tmp_path / "audio" / split / f"{number}.wav", np.stack((sound, 0.3 * sound), 1), RATE)
    values = {
        "data": {"folder": str(tmp_path / "audio"), "seconds": 0.5, "batch": 4}
        | {"validation_crops": 2, "validation_seconds": 1.0},
        "model": {"sample_rate": RATE, "n_fft": 256, "fine_bands": 24, "coarse_bands": 12, "num_blocks": 1}
        | {"dim": 16, "mlp_dim": 16, "taps": [0, 1]},
        "train": {"steps": 40, "warmup_steps": 0, "log_every": 1, "validate_every": 20, "sample_every": 40}
        | {"checkpoint_every": 20, "learning_rate": 1e-2, "precision": "fp32", "ema_decay": 0.8},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    options = TrainStereoOptions(config=str(tmp_path / "config.json"), out=tmp_path / "run", accelerator="cpu")
    assert run(options) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert {"validation/complex", "validation/channels", "validation/side"} <= set(records[-1])
    module = load_stereo(tmp_path / "run" / "stereo.safetensors")
    left, right = module(torch.from_numpy(sound).float().view(1, 1, -1))[0]
    assert left.square().mean() > 2 * right.square().mean()


def test_presets_are_whole_and_in_fp32():
    for preset in sorted(PRESETS.glob("stereo-*.toml")):
        values = read(preset.stem.removeprefix("stereo-"), "stereo")
        assert build(StereoTrainConfig, values).train.precision == "fp32"
        with pytest.raises(ValueError, match=r"train\.precision must be fp32"):
            build(StereoTrainConfig, {**values, "train": {"precision": "bf16"}})
