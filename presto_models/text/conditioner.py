"""Prompts and tags to what the DiT is conditioned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from presto_models.conditioning import Conditioning
from presto_models.text.cache import PromptCache
from presto_models.text.dropout import draw_drops, nullify
from presto_models.text.encoder import TextEncoder, load_text_encoder
from presto_models.text.tags import TagEmbedding, Tags, TagVocabulary


class Conditioner(nn.Module):
    """Tag tokens, then text tokens: ``[B, max_tokens, text_dim]`` with ``max_tokens`` = fields + the encoder's.

    The text encoder is frozen and no part of the module: not in its ``state_dict``, not moved by ``to``.  The tag
    embedding is, and is trained with the DiT.  Results are on the module's device.

    Args:
        encoder: of the text.
        vocabulary: of the tags; None: the model takes none.
        capacity: how many prompts' embeddings are kept.
    """

    _place: Tensor

    def __init__(self, encoder: TextEncoder, vocabulary: TagVocabulary | None = None, *, capacity: int = 128) -> None:
        super().__init__()
        self.cache = PromptCache(encoder, capacity)
        self.tags = None if vocabulary is None else TagEmbedding(vocabulary, encoder.text_dim)
        self.text_dim, self.pooled_dim = encoder.text_dim, encoder.pooled_dim
        self.max_tokens = encoder.max_tokens + (0 if vocabulary is None else len(vocabulary.fields))
        self.register_buffer("_place", torch.empty(0), persistent=False)  # where the module is, with or without tags

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        capacity: int = 128,
    ) -> Conditioner:
        """Of :attr:`config`, on ``device``; the tag embedding's weights are then loaded as any module's.

        ``dtype`` is what the text encoder computes in, as for :func:`load_text_encoder`.
        """
        vocabulary = None if config["tags"] is None else TagVocabulary.from_dict(config["tags"])
        encoder = load_text_encoder(config["text"], device=device, dtype=dtype)
        return cls(encoder, vocabulary, capacity=capacity).to(device)

    @property
    def config(self) -> dict[str, Any]:
        """Plain JSON values that rebuild it: the encoder's spec and the tags' fields and values."""
        tags = None if self.tags is None else self.tags.vocabulary.to_dict()
        return {"text": self.cache.encoder.spec, "tags": tags}

    def forward(self, prompts: Sequence[str], tags: Sequence[Tags | None] | None = None) -> Conditioning:
        """B prompts, and for each the tags it has or None.

        A sample without text and tags is exactly :meth:`Conditioning.null`.
        """
        return self.join(self.encode_text(prompts), tags)

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """The text alone, from the cache where a prompt was there before."""
        return self.cache(prompts).to(self._place.device)

    def join(
        self,
        text: Conditioning,
        tags: Sequence[Tags | None] | None = None,
        *,
        drop_text: float = 0.0,
        drop_tags: float = 0.0,
        drop_all: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Conditioning:
        """Text that is embedded already (:meth:`encode_text`, :class:`EmbeddedCaptions`), and tags.

        ``lengths`` is the number of tag fields and of text tokens together, an absent field being a zero token; it is
        0 for a sample that has neither tags nor text.  Fields come first, so that padding stays on the right.

        Args:
            text: B samples, of any padded length.
            tags: for each sample its tags or None; None: no sample has any.
            drop_text, drop_tags, drop_all: for training, the probabilities that a sample loses its text (and pooled
                vector), its tags, or both; the three are drawn independently.  What is dropped is as if it had not
                been given.
            generator: three numbers a sample are drawn from it (none where all three are 0); None: torch's own.

        Raises:
            ValueError: tags for a model without, another number of them than samples, a field or value that is not in
                the vocabulary, or a probability outside [0, 1].
        """
        if tags is not None and len(tags) != text.batch_size:
            raise ValueError(f"tags must be one mapping per sample, {text.batch_size}, got {len(tags)}")
        if text.tokens.shape[2] != self.text_dim:
            raise ValueError(f"text.tokens must be [B, L, {self.text_dim}], got {tuple(text.tokens.shape)}")
        no_text, no_tags, neither = draw_drops(
            text.batch_size, generator, drop_text=drop_text, drop_tags=drop_tags, drop_all=drop_all
        )
        text = text.to(self._place.device)
        text = nullify(Conditioning(text.tokens, text.pooled, text.text_mask().sum(1)), no_text | neither)
        if self.tags is None:
            if tags is not None and any(tags):
                raise ValueError(f"this model takes no tags, got {next(filter(None, tags))!r}")
            return text
        selection = self.tags.vocabulary.selection([None] * text.batch_size if tags is None else tags)
        selection[no_tags | neither] = 0
        tagged = selection.flatten(1).any(1).to(text.tokens.device)
        count = text.text_mask().sum(1)
        lengths = torch.where(tagged | (count > 0), count + selection.shape[1], 0)
        return Conditioning(torch.cat((self.tags(selection), text.tokens), 1), text.pooled, lengths)
