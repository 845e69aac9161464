"""Prompts that were embedded before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from presto_models.conditioning import Conditioning
from presto_models.text.encoder import TextEncoder, check_prompts


class PromptCache:
    """An encoder that remembers the prompts it was asked last.

    Each prompt is encoded by itself, so that what it embeds to never depends, not even by rounding, on the prompts it
    came with, and is bitwise the same when it comes again.

    Args:
        encoder: what embeds a new prompt.
        capacity: how many prompts are kept; the one not asked for the longest goes first.  A prompt of MiniLM takes
            75 KB, one of T5-base 0.4 MB.
    """

    def __init__(self, encoder: TextEncoder, capacity: int = 128) -> None:
        if capacity < 0:
            raise ValueError(f"capacity must be at least 0, got {capacity}")
        self.encoder = encoder
        self._embed = lru_cache(maxsize=capacity)(lambda prompt: encoder([prompt]))

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """As the encoder's, in new tensors.  White space around a prompt does not count."""
        texts = check_prompts(prompts)
        return Conditioning.cat([self._embed(text) for text in texts]) if texts else self.encoder([])

    def __len__(self) -> int:
        """How many prompts it holds."""
        return self._embed.cache_info().currsize
