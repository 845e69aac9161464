"""Stable Audio Open from stable-audio-tools, accelerated.

    python examples/stable_audio_tools_generation.py --model stabilityai/stable-audio-open-1.0

Without --model it is a small model of random weights that knows how long it is to play, and nothing else.  Needs
stable-audio-tools with all that it asks for (torchaudio, k-diffusion).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import soundfile
import torch
import tyro
from stable_audio_tools.inference.generation import generate_diffusion_cond
from stable_audio_tools.models.factory import create_model_from_config

import presto_kernels


@dataclass(frozen=True)
class Options:
    """Text to sound by stable-audio-tools, before and after accelerate."""

    model: str | None = None  # on the Hugging Face hub; None: small and random
    prompt: str = "a slow church organ"
    seconds: float = 2.0
    steps: int = 20
    seed: int = 0
    out: str = "stable_audio_tools.wav"


SMALL: dict[str, Any] = {
    "model_type": "diffusion_cond",
    "sample_rate": 44100,
    "audio_channels": 2,
    "model": {
        "io_channels": 8,
        "pretransform": {
            "type": "autoencoder",
            "iterate_batch": True,
            "config": {
                "encoder": {"type": "oobleck", "config": {"latent_dim": 16, "channels": 8, "use_snake": True,
                            "in_channels": 2, "c_mults": [1, 2, 4], "strides": [4, 8, 8]}},
                "decoder": {"type": "oobleck", "config": {"latent_dim": 8, "channels": 8, "use_snake": True,
                            "out_channels": 2, "c_mults": [1, 2, 4], "strides": [4, 8, 8], "final_tanh": False}},
                "bottleneck": {"type": "vae"},
                "latent_dim": 8,
                "downsampling_ratio": 256,
                "io_channels": 2,
            },
        },
        "conditioning": {
            "cond_dim": 64,
            "configs": [{"id": "seconds_total", "type": "number", "config": {"min_val": 0, "max_val": 512}}],
        },
        "diffusion": {
            "type": "dit",
            "cross_attention_cond_ids": ["seconds_total"],
            "global_cond_ids": ["seconds_total"],
            "diffusion_objective": "rectified_flow",
            "config": {"io_channels": 8, "embed_dim": 128, "depth": 4, "num_heads": 4, "cond_token_dim": 64,
                       "global_cond_dim": 64, "project_cond_tokens": False},
        },
    },
}  # fmt: skip


def main(options: Options) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, config = load(options.model)
    model = model.to(device).eval().requires_grad_(False)
    audio, before = generate(model, config, options, device)

    presto_kernels.accelerate(model)  # its DiT and its autoencoder
    print(presto_kernels.accelerate_report(model))
    with presto_kernels.prompt_cache(model):
        faster, after = generate(model, config, options, device)

    print(f"{before:.2f} s untouched, {after:.2f} s accelerated; at most {(audio - faster).abs().max():.1e} apart")
    soundfile.write(options.out, faster.clamp(-1, 1).T.numpy(), config["sample_rate"])
    print(options.out)


def load(name: str | None) -> tuple[Any, dict[str, Any]]:
    if name is not None:
        from stable_audio_tools import get_pretrained_model

        return get_pretrained_model(name)
    torch.manual_seed(0)
    return create_model_from_config(SMALL), SMALL


def generate(model: Any, config: dict[str, Any], options: Options, device: str) -> tuple[torch.Tensor, float]:
    """Audio [channels, samples], and the seconds it took."""
    ratio = model.pretransform.downsampling_ratio
    began = time.perf_counter()
    with torch.no_grad():
        audio = generate_diffusion_cond(
            model,
            steps=options.steps,
            cfg_scale=6.0,
            conditioning=[{"prompt": options.prompt, "seconds_start": 0, "seconds_total": options.seconds}],
            sample_size=int(options.seconds * config["sample_rate"]) // ratio * ratio,
            seed=options.seed,
            device=device,
        )
    return audio[0].float().cpu(), time.perf_counter() - began


if __name__ == "__main__":
    main(tyro.cli(Options))
