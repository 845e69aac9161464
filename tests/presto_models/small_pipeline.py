"""A whole pipeline of random weights that generates in milliseconds."""

import warnings
import zlib
from dataclasses import replace

import torch
from small_models import make_dit, small_config

from presto_kernels import LayerSchedule
from presto_models import Conditioning
from presto_models.autoencoders import Oobleck, OobleckConfig
from presto_models.diffusion.sampling import Sampling
from presto_models.diffusion_config import DiffusionConfig
from presto_models.pipeline import PrestoPipeline
from presto_models.stereo import MonoToStereo, StereoConfig
from presto_models.text import Conditioner, TagVocabulary

VOCABULARY = TagVocabulary(("mode", "instrument"), (("major", "minor"), ("flute", "harp", "organ")))


class WordEncoder:
    """A :class:`presto_models.text.TextEncoder` without a language model: each word a vector of its own."""

    text_dim, pooled_dim, max_tokens = 20, 14, 6
    spec = "minilm"  # any that may stand in a config

    def __call__(self, prompts):
        tokens = torch.zeros(len(prompts), self.max_tokens, self.text_dim)
        pooled = torch.zeros(len(prompts), self.pooled_dim)
        lengths = torch.zeros(len(prompts), dtype=torch.int64)
        for i, prompt in enumerate(prompts):
            words = prompt.split()
            if len(words) > self.max_tokens:
                warnings.warn(f"the prompt was cut, {len(words) - self.max_tokens} words", stacklevel=2)
            lengths[i] = len(words[: self.max_tokens])
            for j, word in enumerate(words[: self.max_tokens]):
                draw = torch.Generator().manual_seed(zlib.crc32(word.encode()))
                tokens[i, j] = torch.randn(self.text_dim, generator=draw)
                pooled[i] += torch.randn(self.pooled_dim, generator=draw)
        return Conditioning(tokens, pooled, lengths)


def same(a, b):
    """Equal within rounding, which a walk from noise at 80 enlarges."""
    torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * float(b.abs().max()))


def small_pipeline(
    *, sampler="heun", steps=3, guidance=2.0, stereo=True, tags=True, device="cpu", **changes
) -> PrestoPipeline:
    """Odd sizes: 5 channels, hop 64, 8 kHz, a schedule that drops blocks."""
    dit = make_dit(changes.get("dit", small_config()), torch.float32)
    torch.manual_seed(1)
    conditioner = Conditioner(WordEncoder(), VOCABULARY if tags else None)
    autoencoder = Oobleck(
        OobleckConfig(
            sample_rate=8000,
            audio_channels=1,
            latent_channels=5,
            channels=4,
            encoder_channels=4,
            multiples=(1, 2, 2),
            strides=(4, 4, 4),
        )
    )
    module = None
    if stereo:
        module = MonoToStereo(replace(StereoConfig.named("tiny"), sample_rate=8000))
        torch.nn.init.normal_(module.head.weight, std=0.1)
    spacing = "interval" if sampler in ("pingpong", "ctm") else "endpoint"
    settings = {
        "dit": dit.config,
        "latent_mean": (0.1, 0.2, -0.3, 0.0, 1.0),
        "latent_std": (1.0, 0.5, 2.0, 1.5, 0.7),
        "text": "minilm",
        "tags": VOCABULARY.to_dict() if tags else None,
        "sampling": Sampling(sampler, steps, guidance, spacing=spacing),
        "schedule": LayerSchedule(6, (1.0, 20.0), (6, 5, 3)),
        "max_seconds": 3.0,
    }
    for part in (dit, conditioner, autoencoder, *([] if module is None else [module])):
        part.to(device).eval().requires_grad_(False)
    return PrestoPipeline(
        DiffusionConfig(**(settings | changes)), dit, autoencoder, conditioner=conditioner, stereo=module
    )
