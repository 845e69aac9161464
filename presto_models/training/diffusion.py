"""`train diffusion`: the DiT on encoded music, with text and tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from presto_models.autoencoders import Autoencoder, load_autoencoder
from presto_models.checkpoint import save_weights
from presto_models.conditioning import Conditioning
from presto_models.diffusion import (
    EDM,
    TrainingSigmas,
    classifier_free,
    edm_loss,
    initial_noise,
    karras_sigmas,
    sample_heun,
)
from presto_models.dit import DiT
from presto_models.dit_config import DiTConfig
from presto_models.text import Conditioner, TagVocabulary, load_text_encoder
from presto_models.text.encoder import parse_spec
from presto_models.training.audio import signed
from presto_models.training.cli import TrainOptions, train
from presto_models.training.config import TrainConfig
from presto_models.training.examples import CropConfig, DropConfig, Examples, MusicCrops
from presto_models.training.images import latent_image, spectrogram_image
from presto_models.training.seeding import derived_seed, generator, seeded_weights
from presto_models.training.sharding import shard_parts
from presto_models.training.task import Player, Samples, Task, shares

SHARDED = ("self_attention", "cross_attention", "mlp")


@dataclass(frozen=True)
class DiffusionConfig:
    """What ``train diffusion`` computes.

    Args:
        data: folder of encoded latents (``data encode``).
        autoencoder: checkpoint to hear samples with; None: samples are pictures of latents.
        text: the text encoder's spec; model.text_dim and pooled_dim must be its widths.
        text_tokens: how many tokens of text the model sees; None: the encoder's own default.
        tags: the tag fields to condition on; none: no tags.
        drop_text, drop_tags, drop_all: how often a sample's text, its tags, or both are dropped in training.
        crops: the kinds of batches; batch counts all processes and micro-batches together.
        sigma_data: what latents are scaled to.  p_mean, p_std: of ln(sigma), for a sigma_data of 0.5.
        validation_crops: how many, of the first kind's length.
        prompts: what is sampled every so often, each with its own seed; none: captions of validation clips.
        sample_latents, sample_steps, guidance: of those samples.
    """

    data: str
    autoencoder: str | None = None
    text: str = "minilm"
    text_tokens: int | None = None
    tags: tuple[str, ...] = ("collection", "mode", "tempo", "instrument")
    drop_text: float = 0.1
    drop_tags: float = 0.1
    drop_all: float = 0.1
    crops: tuple[CropConfig, ...] = (CropConfig(),)
    sigma_data: float = 0.5
    p_mean: float = -1.2
    p_std: float = 1.2
    validation_crops: int = 64
    prompts: tuple[str, ...] = ()
    sample_latents: int = 172
    sample_steps: int = 20
    guidance: float = 3.0
    model: DiTConfig = field(default_factory=DiTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class Batch(Examples):
    """Examples at noise levels ``[B]``, with a noise seed each, and afterwards their losses ``[B]``."""

    sigma: Tensor
    seeds: Tensor
    losses: Tensor | None = None


class DiffusionLoss(nn.Module):
    """EDM's loss of each sample ``[B]``: the DiT in autocast's bf16 or in fp32, everything around it in fp32."""

    def __init__(self, edm: EDM, conditioner: Conditioner, *, low: bool) -> None:
        super().__init__()
        self.edm, self.conditioner, self.low = edm, conditioner, low

    def forward(self, clean: Tensor, sigma: Tensor, seeds: Tensor, text: Conditioning, tags: Sequence[Any]) -> Tensor:
        noise = initial_noise(clean.shape, seed=seeds, device=clean.device)
        # The tags go in before autocast: it would round their embedding to bf16 for nothing.
        conditioning = self.conditioner.join(text, tags if self.conditioner.tags is not None else None)
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=self.low):
            return edm_loss(self.edm, clean, conditioning, sigma=sigma, noise=noise)


class DiffusionTask(Task):
    """EDM's denoising loss on crops of encoded clips, with conditions dropped for classifier-free guidance."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config, self.seed = config, config.train.seed
        self.sigmas = TrainingSigmas(config.p_mean, config.p_std).for_sigma_data(config.sigma_data)
        kind, source, default = parse_spec(config.text)
        self.encoder = load_text_encoder(
            {
                "kind": kind,
                "source": source,
                "max_tokens": default if config.text_tokens is None else config.text_tokens,
            }
        )
        self._check()
        drops = DropConfig(config.drop_text, config.drop_tags, config.drop_all)
        self.music = MusicCrops(
            config.data,
            crops=config.crops,
            drops=drops,
            seed=self.seed,
            encoder=self.encoder,
            sigma_data=config.sigma_data,
            validation_crops=config.validation_crops,
            prompts=config.prompts,
        )
        found = self.music.mean.shape[0]
        if config.model.in_channels != found:
            raise ValueError(f"model.in_channels must be {found}, of {config.data}; got {config.model.in_channels}")
        self.low, self.device = config.train.precision == "bf16", torch.device("cpu")
        with seeded_weights(self.seed):
            dit = DiT(config.model)
            self.conditioner = Conditioner(self.encoder, self._vocabulary())
        if self.conditioner.tags is not None:
            self.music.vocabulary = self.conditioner.tags.vocabulary
        # The teacher always runs all its blocks; a parameter that is never used would have no gradient.
        dit.condition.budget.requires_grad_(False)
        self.edm = EDM(dit, config.sigma_data)
        self.loss_module = DiffusionLoss(self.edm, self.conditioner, low=self.low)
        self.players = (Player("diffusion", self.loss_module),)
        self.autoencoder: Autoencoder | None = None
        if config.autoencoder is not None:
            self.autoencoder = load_autoencoder(config.autoencoder).eval().requires_grad_(False)

    def batch(self, step: int, part: int, parts: int) -> Batch:
        kind, size, mine = self.music.share(step, part, parts)
        sigma = self.sigmas.sample(size, generator=generator(self.seed, "sigma", step))
        seeds = [derived_seed(self.seed, "noise", step, sample) for sample in mine]
        return _batch(self.music.draw(kind, step, mine), sigma[mine.start : mine.stop], seeds)

    def loss(self, player: Player, module: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch.losses = module(batch.clean, batch.sigma, batch.seeds, batch.text, batch.tags)
        return batch.losses.mean(), {}

    def describe(self, batch: Any) -> str:
        losses = [float("nan")] * len(batch.names) if batch.losses is None else batch.losses.tolist()
        rows = zip(batch.sigma.tolist(), losses, batch.names, strict=True)
        return "samples " + ", ".join(f"(sigma {sigma:.6g}, loss {loss:.6g}, {name})" for sigma, loss, name in rows)

    def validate(self, rank: int, world: int) -> dict[str, tuple[Tensor, Tensor]]:
        """The mean loss at noise levels spread evenly over the training distribution, and of its thirds."""
        config = self.config
        count, size = config.validation_crops, max(1, config.crops[0].batch // world)
        sigma = self.sigmas.p_mean + self.sigmas.p_std * torch.special.ndtri((torch.arange(count) + 0.5) / count)
        sigma = sigma.exp().clamp(self.sigmas.sigma_min, self.sigmas.sigma_max)
        losses, counted = torch.zeros(count), torch.zeros(count)
        for samples, counts in shares(count, rank, world, size):
            seeds = [derived_seed(0, "validation", sample) for sample in samples]
            batch = _batch(self.music.validation(samples), sigma[samples], seeds).to(self.device)
            losses[samples] = self.loss_module(batch.clean, batch.sigma, batch.seeds, batch.text, batch.tags).cpu()
            counted.index_add_(0, torch.tensor(samples), counts)
        thirds = zip(("low_sigma", "middle_sigma", "high_sigma"), losses.chunk(3), counted.chunk(3), strict=True)
        parts = [("loss", losses, counted), *thirds]
        return {name: ((values * weights).sum(), weights.sum()) for name, values, weights in parts}

    def sample(self) -> Samples:
        config, prompts = self.config, self.music.prompts
        text = self.music.captions.batch(prompts).to(self.device)
        conditioning = self.conditioner.join(text).with_null()

        def plain(x: Tensor, sigma: float) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
                return self.edm(x, sigma, conditioning)

        low, high = self.sigmas.sigma_min, self.sigmas.sigma_max
        sigmas = karras_sigmas(config.sample_steps, sigma_min=low, sigma_max=high)
        seeds = [derived_seed(self.seed, "sample", index) for index in range(len(prompts))]
        shape = (len(prompts), config.sample_latents, config.model.in_channels)
        noise = initial_noise(shape, seed=seeds, device=self.device) * sigmas[0]
        latents = sample_heun(classifier_free(plain, config.guidance), noise, sigmas).cpu()
        images = {f"latents/{index}": latent_image(each) for index, each in enumerate(latents)}
        if self.autoencoder is None:
            return Samples(images=images)
        latents = latents / config.sigma_data * self.music.std + self.music.mean
        audio = self.autoencoder.decode(latents.to(self.device)).cpu()
        named = {f"sample-{index}": each for index, each in enumerate(audio)}
        images |= {f"spectrogram/{index}": spectrogram_image(each) for index, each in enumerate(audio)}
        return Samples(self.autoencoder.sample_rate, named, images)

    def export(self, folder: Path, weights: Mapping[str, Mapping[str, Tensor]]) -> Path:
        config, conditioner = self.config, self.conditioner.config
        longest = max(crop.latents for crop in config.crops)
        names = {"edm.dit.": "dit.", "conditioner.": "conditioner."}
        stored = {
            new + name.removeprefix(old): tensor.to(torch.bfloat16)
            for name, tensor in weights["diffusion"].items()
            for old, new in names.items()
            if name.startswith(old)
        }
        index = self.music.train.index
        described = {
            "dit": config.model.to_dict(),
            "sigma_data": config.sigma_data,
            "latents": {"mean": self.music.mean.tolist(), "std": self.music.std.tolist()},
            "text": conditioner["text"],
            "tags": conditioner["tags"],
            "sampling": {
                "sampler": "heun",
                "steps": 40,
                "guidance": config.guidance,
                "sigma_min": self.sigmas.sigma_min,
                "sigma_max": self.sigmas.sigma_max,
                "spacing": "endpoint",
            },
            "schedule": None,
            # Half as long again as it was trained on: rotary positions go on, only the form was not learned there.
            "max_seconds": round(1.5 * longest * index["hop"] / index["sample_rate"], 3),
        }
        return save_weights(folder / "diffusion.safetensors", stored, kind="diffusion", config=described)

    def shard(self, module: nn.Module, mesh: Any) -> nn.Module:
        shard_parts(self.edm.dit, SHARDED, mesh, torch.bfloat16 if self.low else None)
        if self.conditioner.tags is not None:
            shard_parts(self.conditioner.tags, (), mesh, None)
        return module

    def to(self, device: torch.device) -> None:
        self.device = device
        if self.autoencoder is not None:
            self.autoencoder.to(device)

    def _vocabulary(self) -> TagVocabulary | None:
        tags = [clip["tags"] for clip in (*self.music.train.clips, *self.music.held_out.clips)]
        return TagVocabulary.build(tags, self.config.tags) if self.config.tags and any(tags) else None

    def _check(self) -> None:
        model = self.config.model
        for name, given, fits in (
            ("text_dim", model.text_dim, self.encoder.text_dim),
            ("pooled_dim", model.pooled_dim, self.encoder.pooled_dim),
        ):
            if given != fits:
                raise ValueError(f"model.{name} must be {fits}, of {self.config.text}; got {given}")


def _batch(examples: Examples, sigma: Tensor, seeds: Sequence[int]) -> Batch:
    return Batch(**vars(examples), sigma=sigma, seeds=signed(seeds))


@dataclass(frozen=True)
class TrainDiffusionOptions(TrainOptions):
    """Train a diffusion model."""


def run(options: TrainDiffusionOptions) -> int:
    """See :func:`presto_models.training.cli.train`."""
    return train(options, "diffusion", DiffusionConfig, DiffusionTask)
