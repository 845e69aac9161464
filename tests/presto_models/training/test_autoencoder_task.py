"""`train autoencoder` on a few seconds of made-up sound."""

import json

import numpy as np
import pytest
import torch

from presto_models.autoencoders import load_autoencoder
from presto_models.training.autoencoder import (
    AutoencoderTask,
    AutoencoderTrainConfig,
    TrainAutoencoderOptions,
    run,
)
from presto_models.training.config import PRESETS, build, read

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("lightning")
pytest.importorskip("auraloss")

RATE = 8000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("audio")
    random = np.random.default_rng(0)
    for split, count in (("train", 3), ("validation", 2)):
        (root / split).mkdir()
        for number in range(count):
            times = np.arange(2 * RATE) / RATE
            tones = sum(np.sin(2 * np.pi * f * times) for f in random.uniform(100, 2000, 3))
            soundfile.write(root / split / f"{number}.wav", 0.2 * np.stack((tones, 0.5 * tones), 1), RATE)
    return root


def values(folder, **changes):
    return {
        "data": {"folder": str(folder), "seconds": 0.512, "batch": 4, "validation_crops": 3, "validation_seconds": 0.7},
        "model": {"sample_rate": RATE, "latent_channels": 4, "n_fft": 256, "tonal_bins": 100, "dim": 16, "mlp_dim": 16}
        | {"encoder_blocks": 1, "decoder_blocks": 1},
        "audio_loss": {"fft_sizes": [512, 128], "mel": 0.0},
        "train": {"steps": 6, "warmup_steps": 0, "log_every": 1, "validate_every": 6, "sample_every": 6}
        | {"checkpoint_every": 3, "learning_rate": 3e-3, "precision": "fp32"},
        **changes,
    }


def train(tmp_path, name, configuration, **options):
    (tmp_path / f"{name}.json").write_text(json.dumps(configuration))
    given = TrainAutoencoderOptions(
        config=str(tmp_path / f"{name}.json"), out=tmp_path / name, accelerator="cpu", **options
    )
    assert run(given) == 0
    return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_exports(folder, tmp_path):
    """Sixteen-bit stereo files, mixed down; the loss falls; what is exported decodes what it encodes."""
    records = train(tmp_path, "run", values(folder), set=("train.steps=30", "train.validate_every=15"))
    losses = [record["loss"] for record in records if "loss" in record]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert {"validation/convergence", "validation/stft", "validation/advance", "validation/kl"} <= set(records[-1])
    model = load_autoencoder(tmp_path / "run" / "autoencoder.safetensors")
    assert model.decode(model.encode(torch.zeros(1, 1, 512))).shape == (1, 1, 512)


def test_the_discriminator_starts_when_it_is_told(folder, tmp_path):
    """And moves itself and, through its judgement, the decoder, but not a frozen encoder: latents stay the same."""
    train(tmp_path, "first", values(folder))
    start = tmp_path / "first" / "autoencoder.safetensors"
    hostile = {"start": 2, "discriminator": {"fft_sizes": [256], "channels": 4}}
    configuration = values(folder, adversarial=hostile, freeze_encoder=True, start_from=str(start))
    records = train(tmp_path, "second", configuration)
    began = [record["step"] for record in records if "discriminator/loss" in record]
    assert began == [3, 4, 5, 6]
    assert [record["step"] for record in records if "autoencoder/adversarial" in record] == began
    before, after = load_autoencoder(start), load_autoencoder(tmp_path / "second" / "autoencoder.safetensors")
    audio = torch.sin(torch.arange(1024) / 5).view(1, 1, -1)
    assert torch.equal(before.encode(audio), after.encode(audio))
    assert not torch.equal(before.decode(before.encode(audio)), after.decode(after.encode(audio)))


def test_the_discriminator_takes_no_gradient_from_the_autoencoders_loss(folder):
    hostile = {"discriminator": {"fft_sizes": [256], "channels": 4}}
    task = AutoencoderTask(build(AutoencoderTrainConfig, values(folder, adversarial=hostile)))
    batch = task.batch(0, 0, 1)
    loss, parts = task.loss(task.players[0], task.players[0].module, batch, 0)
    loss.backward()
    assert {"adversarial", "features"} <= set(parts)
    assert all(weight.grad is None for weight in task.judgement.parameters())
    loss, _ = task.loss(task.players[1], task.players[1].module, batch, 0)
    loss.backward()
    assert all(weight.grad is not None for weight in task.judgement.parameters())


def test_batches_are_functions_of_the_step(folder):
    task = AutoencoderTask(build(AutoencoderTrainConfig, values(folder)))
    whole, halves = task.batch(3, 0, 1), [task.batch(3, part, 2) for part in (0, 1)]
    assert torch.equal(whole.audio, torch.cat([half.audio for half in halves]))
    assert torch.equal(whole.seeds, torch.cat([half.seeds for half in halves]))
    assert not torch.equal(whole.audio, task.batch(4, 0, 1).audio)
    with pytest.raises(ValueError, match="cannot be split over 3"):
        task.batch(0, 0, 3)


def test_without_a_loss_of_the_waveform_none_is_made(folder):
    task = AutoencoderTask(build(AutoencoderTrainConfig, values(folder, audio_loss=None)))
    batch = task.batch(0, 0, 1)
    loss, parts = task.loss(task.players[0], task.players[0].module, batch, 0)
    assert set(parts) == {"log_magnitude", "magnitude", "convergence", "advance", "kl"} and batch.output is None
    loss.backward()
    assert all(weight.grad is not None for weight in task.model.parameters())


def test_presets_are_whole():
    for preset in sorted(PRESETS.glob("autoencoder-*.toml")):
        build(AutoencoderTrainConfig, read(preset.stem.removeprefix("autoencoder-"), "autoencoder"))
