"""`train diffusion`: the DiT on encoded music, with text and tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from presto_models.autoencoders import Autoencoder, load_autoencoder
from presto_models.checkpoint import save_weights
from presto_models.conditioning import Conditioning
from presto_models.data.latents import LatentDataset
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
from presto_models.text import Conditioner, EmbeddedCaptions, TagVocabulary, embed_captions, load_text_encoder
from presto_models.text.encoder import parse_spec
from presto_models.training.audio import ENDLESS, signed
from presto_models.training.cli import TrainOptions, train
from presto_models.training.config import TrainConfig
from presto_models.training.images import latent_image, spectrogram_image
from presto_models.training.seeding import derived_seed, generator, seeded_weights
from presto_models.training.sharding import shard_parts
from presto_models.training.task import Player, Samples, Task, shares

SAMPLES = 4  # where the config has no prompts
SHARDED = ("self_attention", "cross_attention", "mlp")


@dataclass(frozen=True)
class CropConfig:
    """A kind of batch: ``batch`` crops of ``latents`` latents, drawn with this weight among the kinds."""

    latents: int = 172
    batch: int = 16
    weight: float = 1.0


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
class Batch:
    """Clean latents ``[B, N, C]``, noise levels ``[B]``, a noise seed each, and what each is conditioned on."""

    clean: Tensor
    sigma: Tensor
    seeds: Tensor
    text: Conditioning
    tags: list[Mapping[str, Any] | None]
    names: list[str]
    losses: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on ``device``."""
        return replace(
            self,
            clean=self.clean.to(device),
            sigma=self.sigma.to(device),
            seeds=self.seeds.to(device),
            text=self.text.to(device),
        )


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
        self.crops = [
            LatentDataset(config.data, "train", latents=crop.latents, seed=self.seed, length=ENDLESS)
            for crop in config.crops
        ]
        self.train = self.crops[0]
        # Held-out crops are the same for every seed, so that runs can be compared.
        self.held_out = LatentDataset(
            config.data, "validation", latents=config.crops[0].latents, seed=0, length=config.validation_crops
        )
        self.sigmas = TrainingSigmas(config.p_mean, config.p_std).for_sigma_data(config.sigma_data)
        self.prompts = config.prompts or tuple(
            clip["captions"][0] for clip in self.held_out.clips[:SAMPLES] if clip["captions"]
        )
        kind, source, default = parse_spec(config.text)
        self.encoder = load_text_encoder(
            {
                "kind": kind,
                "source": source,
                "max_tokens": default if config.text_tokens is None else config.text_tokens,
            }
        )
        self._check()
        self.captions = self._texts()
        self.low, self.device = config.train.precision == "bf16", torch.device("cpu")
        with seeded_weights(self.seed):
            dit = DiT(config.model)
            self.conditioner = Conditioner(self.encoder, self._vocabulary())
        # The teacher always runs all its blocks; a parameter that is never used would have no gradient.
        dit.condition.budget.requires_grad_(False)
        self.edm = EDM(dit, config.sigma_data)
        self.loss_module = DiffusionLoss(self.edm, self.conditioner, low=self.low)
        self.players = (Player("diffusion", self.loss_module),)
        self.autoencoder: Autoencoder | None = None
        if config.autoencoder is not None:
            self.autoencoder = load_autoencoder(config.autoencoder).eval().requires_grad_(False)

    def batch(self, step: int, part: int, parts: int) -> Batch:
        weights = torch.tensor([crop.weight for crop in self.config.crops])
        kind = int(torch.multinomial(weights, 1, generator=generator(self.seed, "kind", step)))
        size = self.config.crops[kind].batch
        if size % parts:
            raise ValueError(f"a batch of {size} crops cannot be split over {parts} processes and micro-batches")
        sigma = self.sigmas.sample(size, generator=generator(self.seed, "sigma", step))
        mine = range(part * size // parts, (part + 1) * size // parts)
        drawn = [self._dropped(self.crops[kind][step * size + sample], step, sample) for sample in mine]
        seeds = [derived_seed(self.seed, "noise", step, sample) for sample in mine]
        return self._collate(drawn, sigma[mine.start : mine.stop], seeds)

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
            drawn = [(crop, crop["caption"], True) for crop in map(self.held_out.__getitem__, samples)]
            seeds = [derived_seed(0, "validation", sample) for sample in samples]
            batch = self._collate(drawn, sigma[samples], seeds, self.held_out).to(self.device)
            losses[samples] = self.loss_module(batch.clean, batch.sigma, batch.seeds, batch.text, batch.tags).cpu()
            counted.index_add_(0, torch.tensor(samples), counts)
        thirds = zip(("low_sigma", "middle_sigma", "high_sigma"), losses.chunk(3), counted.chunk(3), strict=True)
        parts = [("loss", losses, counted), *thirds]
        return {name: ((values * weights).sum(), weights.sum()) for name, values, weights in parts}

    def sample(self) -> Samples:
        config, prompts = self.config, self.prompts
        text = self.captions.batch(prompts).to(self.device)
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
        latents = latents / config.sigma_data * self.train.std + self.train.mean
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
        index = self.train.index
        described = {
            "dit": config.model.to_dict(),
            "sigma_data": config.sigma_data,
            "latents": {"mean": self.train.mean.tolist(), "std": self.train.std.tolist()},
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

    def _dropped(self, crop: dict[str, Any], step: int, sample: int) -> tuple[dict[str, Any], str, bool]:
        """The crop, its caption, and whether it keeps its tags: what is dropped is as if it had not been given."""
        config = self.config
        text, tags, both = torch.rand(3, generator=generator(self.seed, "drop", step, sample)).tolist()
        keeps_text = text >= config.drop_text and both >= config.drop_all
        return crop, crop["caption"] if keeps_text else "", tags >= config.drop_tags and both >= config.drop_all

    def _collate(
        self,
        drawn: Sequence[tuple[dict[str, Any], str, bool]],
        sigma: Tensor,
        seeds: Sequence[int],
        source: LatentDataset | None = None,
    ) -> Batch:
        clips = (source or self.train).clips
        latents = torch.stack([crop["latents"] for crop, _, _ in drawn])
        embedding = self.conditioner.tags
        tags: list[Mapping[str, Any] | None] = [
            embedding.vocabulary.restrict(clips[crop["item"]]["tags"]) if embedding is not None and kept else None
            for crop, _, kept in drawn
        ]
        return Batch(
            clean=(latents - self.train.mean) / self.train.std * self.config.sigma_data,
            sigma=sigma,
            seeds=signed(seeds),
            text=self.captions.batch([caption for _, caption, _ in drawn]),
            tags=tags,
            names=[clips[crop["item"]]["id"] for crop, _, _ in drawn],
        )

    def _vocabulary(self) -> TagVocabulary | None:
        tags = [clip["tags"] for clip in (*self.train.clips, *self.held_out.clips)]
        return TagVocabulary.build(tags, self.config.tags) if self.config.tags and any(tags) else None

    def _texts(self) -> EmbeddedCaptions:
        """All captions embedded; kept beside the latents, for the next run."""
        file = Path(self.config.data) / "captions.safetensors"
        clips = (*self.train.clips, *self.held_out.clips)
        wanted = [*(caption for clip in clips for caption in clip["captions"]), *self.prompts]
        if file.is_file():
            known = EmbeddedCaptions.load(file)
            if known.encoder == self.encoder.spec and all(caption in known for caption in wanted):
                return known
        made = embed_captions(self.encoder, wanted)
        made.save(file)
        return made

    def _check(self) -> None:
        model, found = self.config.model, self.train.mean.shape[0]
        for name, given, fits in (
            ("in_channels", model.in_channels, found),
            ("text_dim", model.text_dim, self.encoder.text_dim),
            ("pooled_dim", model.pooled_dim, self.encoder.pooled_dim),
        ):
            if given != fits:
                raise ValueError(
                    f"model.{name} must be {fits}, of {self.config.data} and {self.config.text}; got {given}"
                )


@dataclass(frozen=True)
class TrainDiffusionOptions(TrainOptions):
    """Train a diffusion model."""


def run(options: TrainDiffusionOptions) -> int:
    """See :func:`presto_models.training.cli.train`."""
    return train(options, "diffusion", DiffusionConfig, DiffusionTask)
