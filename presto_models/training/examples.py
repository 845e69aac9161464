"""What the DiT and its students are trained on: crops of encoded clips, each with a caption and tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from presto_models.conditioning import Conditioning
from presto_models.data.latents import LatentDataset
from presto_models.text import EmbeddedCaptions, TagVocabulary, embed_captions
from presto_models.text.encoder import TextEncoder
from presto_models.training.audio import ENDLESS
from presto_models.training.seeding import generator

SAMPLES = 4  # where the config has no prompts


@dataclass(frozen=True)
class CropConfig:
    """A kind of batch: ``batch`` crops of ``latents`` latents, drawn with this weight among the kinds."""

    latents: int = 172
    batch: int = 16
    weight: float = 1.0


@dataclass(frozen=True)
class DropConfig:
    """How often a sample's text, its tags, or both are dropped, for classifier-free guidance."""

    text: float = 0.1
    tags: float = 0.1
    both: float = 0.1


Self = TypeVar("Self", bound="Examples")


@dataclass
class Examples:
    """Clean latents ``[B, N, C]`` of standard deviation sigma_data, and what each sample is conditioned on."""

    clean: Tensor
    text: Conditioning
    tags: list[Mapping[str, Any] | None]
    names: list[str]

    def to(self: Self, device: torch.device) -> Self:
        """The same on ``device``: every tensor and the text."""
        moved: dict[str, Any] = {n: v.to(device) for n, v in vars(self).items() if isinstance(v, Tensor | Conditioning)}
        return replace(self, **moved)


class MusicCrops:
    """Crops of a folder of encoded latents, a function of the step and the sample alone.

    Args:
        data: the folder (``data encode``).
        crops: the kinds of batches.
        encoder: of the captions; their embeddings are kept beside the latents, for the next run.
        sigma_data: what latents are scaled to, z = (latent - mean) / std * sigma_data.
        validation_crops: how many held-out crops there are, of the first kind's length.
        prompts: what is sampled; none: captions of held-out clips.
        mean, std: None: those of the data.

    Raises:
        FileNotFoundError, ValueError: there are no latents, or none to train or validate on.
    """

    def __init__(
        self,
        data: str,
        *,
        crops: Sequence[CropConfig],
        drops: DropConfig,
        seed: int,
        encoder: TextEncoder,
        sigma_data: float,
        validation_crops: int,
        prompts: Sequence[str] = (),
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        self.kinds, self.drops, self.seed, self.sigma_data = tuple(crops), drops, seed, sigma_data
        self.crops = [
            LatentDataset(data, "train", latents=crop.latents, seed=seed, length=ENDLESS) for crop in self.kinds
        ]
        self.train = self.crops[0]
        # Held-out crops are the same for every seed, so that runs can be compared.
        self.held_out = LatentDataset(
            data, "validation", latents=self.kinds[0].latents, seed=0, length=validation_crops
        )
        self.mean, self.std = self.train.mean if mean is None else mean, self.train.std if std is None else std
        self.prompts = tuple(prompts) or tuple(
            clip["captions"][0] for clip in self.held_out.clips[:SAMPLES] if clip["captions"]
        )
        self.captions = self._texts(Path(data) / "captions.safetensors", encoder)
        self.vocabulary: TagVocabulary | None = None

    def share(self, step: int, part: int, parts: int) -> tuple[int, int, range]:
        """(kind, size of the whole batch, this part's samples of it)."""
        weights = torch.tensor([crop.weight for crop in self.kinds])
        kind = int(torch.multinomial(weights, 1, generator=generator(self.seed, "kind", step)))
        size = self.kinds[kind].batch
        if size % parts:
            raise ValueError(f"a batch of {size} crops cannot be split over {parts} processes and micro-batches")
        return kind, size, range(part * size // parts, (part + 1) * size // parts)

    def draw(self, kind: int, step: int, samples: Sequence[int]) -> Examples:
        """These samples of the step's batch, in this order, with conditions dropped."""
        size = self.kinds[kind].batch
        return self._collate([self._dropped(self.crops[kind][step * size + s], step, s) for s in samples], self.train)

    def validation(self, samples: Sequence[int]) -> Examples:
        """These held-out crops, with their caption and tags."""
        return self._collate([(crop, crop["caption"], True) for crop in map(self.held_out.__getitem__, samples)])

    def _dropped(self, crop: dict[str, Any], step: int, sample: int) -> tuple[dict[str, Any], str, bool]:
        """The crop, its caption, and whether it keeps its tags: what is dropped is as if it had not been given."""
        text, tags, both = torch.rand(3, generator=generator(self.seed, "drop", step, sample)).tolist()
        keeps_text = text >= self.drops.text and both >= self.drops.both
        return crop, crop["caption"] if keeps_text else "", tags >= self.drops.tags and both >= self.drops.both

    def _collate(
        self, drawn: Sequence[tuple[dict[str, Any], str, bool]], source: LatentDataset | None = None
    ) -> Examples:
        clips = (source or self.held_out).clips
        tags: list[Mapping[str, Any] | None] = [
            self.vocabulary.restrict(clips[crop["item"]]["tags"]) if self.vocabulary is not None and kept else None
            for crop, _, kept in drawn
        ]
        latents = torch.stack([crop["latents"] for crop, _, _ in drawn])
        return Examples(
            clean=(latents - self.mean) / self.std * self.sigma_data,
            text=self.captions.batch([caption for _, caption, _ in drawn]),
            tags=tags,
            names=[clips[crop["item"]]["id"] for crop, _, _ in drawn],
        )

    def _texts(self, file: Path, encoder: TextEncoder) -> EmbeddedCaptions:
        clips = (*self.train.clips, *self.held_out.clips)
        wanted = [*(caption for clip in clips for caption in clip["captions"]), *self.prompts]
        if file.is_file():
            known = EmbeddedCaptions.load(file)
            if known.encoder == encoder.spec and all(caption in known for caption in wanted):
                return known
        made = embed_captions(encoder, wanted)
        made.save(file)
        return made
