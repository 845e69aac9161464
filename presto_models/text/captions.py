"""A training set's captions, embedded once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from presto_models.checkpoint import CheckpointError, load_weights, save_weights
from presto_models.conditioning import Conditioning
from presto_models.text.encoder import TextEncoder, check_prompts

KIND = "captions"


class EmbeddedCaptions:
    """What each of a set of captions embeds to; made by :func:`embed_captions`.

    fp16 on the CPU, without padding: a caption of 20 tokens takes 16 KB with MiniLM.

    Args:
        captions: all different, none empty.
        tokens: ``[sum of lengths, text_dim]``, fp16: the states of one caption behind those of another.
        pooled: ``[captions, pooled_dim]``, fp16.  lengths: ``[captions]``, int64.
        max_tokens: L of a batch.
        encoder: the spec of what embedded them.
    """

    def __init__(
        self,
        captions: Sequence[str],
        tokens: Tensor,
        pooled: Tensor,
        lengths: Tensor,
        max_tokens: int,
        encoder: dict[str, Any],
    ) -> None:
        self.captions, self.max_tokens, self.encoder = tuple(captions), max_tokens, encoder
        self.tokens, self.pooled, self.lengths = tokens, pooled, lengths
        self._rows = {caption: row for row, caption in enumerate(self.captions)}
        self._states = tokens.split(lengths.tolist())  # views

    def __len__(self) -> int:
        """How many captions it holds."""
        return len(self.captions)

    def __contains__(self, caption: object) -> bool:
        return isinstance(caption, str) and (not caption.strip() or caption.strip() in self._rows)

    def batch(self, captions: Sequence[str]) -> Conditioning:
        """As the encoder's, to fp16's rounding: fp32 on the CPU, ``[B, max_tokens, text_dim]``; an empty one is null.

        Raises:
            ValueError: a caption was not embedded.
        """
        texts = check_prompts(captions)
        for text in texts:
            if text and text not in self._rows:
                raise ValueError(f"caption {text!r} is not among the {len(self)} embedded ones")
        tokens = torch.zeros(len(texts), self.max_tokens, self.tokens.shape[1])
        pooled = torch.zeros(len(texts), self.pooled.shape[1])
        lengths = torch.zeros(len(texts), dtype=torch.int64)
        for sample, text in enumerate(texts):
            if text:
                row = self._rows[text]
                states = self._states[row]
                tokens[sample, : len(states)] = states
                pooled[sample], lengths[sample] = self.pooled[row], len(states)
        return Conditioning(tokens, pooled, lengths)

    def save(self, path: str | os.PathLike[str]) -> None:
        """One safetensors file, beside ``path`` first and then renamed."""
        tensors = {"tokens": self.tokens, "pooled": self.pooled, "lengths": self.lengths}
        config = {"captions": self.captions, "max_tokens": self.max_tokens, "encoder": self.encoder}
        save_weights(path, tensors, kind=KIND, config=config)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, encoder: TextEncoder | None = None) -> EmbeddedCaptions:
        """What :meth:`save` wrote; with ``encoder``, only if that is what embedded them.

        Raises:
            FileNotFoundError, CheckpointError: as :func:`presto_models.checkpoint.load_weights`, or another encoder.
        """
        tensors, config = load_weights(path, kind=KIND)
        if encoder is not None and encoder.spec != config["encoder"]:
            raise CheckpointError(f"{path} was embedded with {config['encoder']}, wanted {encoder.spec}")
        return cls(
            config["captions"],
            tensors["tokens"],
            tensors["pooled"],
            tensors["lengths"],
            config["max_tokens"],
            config["encoder"],
        )


def embed_captions(encoder: TextEncoder, captions: Iterable[str], *, batch_size: int = 64) -> EmbeddedCaptions:
    """Each caption that occurs, embedded once, with a progress bar where there is a terminal.

    Raises:
        ValueError: a state is not finite in fp16.
    """
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError as error:
        raise ImportError("embed_captions needs rich: pip install 'presto-kernels[models]'") from error
    # Captions of one length beside each other leave little padding to compute.
    unique = sorted(set(check_prompts(list(captions))) - {""}, key=lambda caption: (len(caption), caption))
    console = Console(stderr=True)
    tokens, pooled, lengths = [], [], []
    starts = range(0, len(unique), batch_size)
    for start in track(starts, "captions", console=console, transient=True, disable=not console.is_terminal):
        part = encoder(unique[start : start + batch_size])
        tokens.append(part.tokens[part.text_mask()].to("cpu", torch.float16))
        assert part.pooled is not None  # a TextEncoder always gives one
        pooled.append(part.pooled.to("cpu", torch.float16))
        lengths.append(part.text_mask().sum(1).cpu())
    table = EmbeddedCaptions(
        unique,
        torch.cat([torch.empty(0, encoder.text_dim, dtype=torch.float16), *tokens]),
        torch.cat([torch.empty(0, encoder.pooled_dim, dtype=torch.float16), *pooled]),
        torch.cat([torch.empty(0, dtype=torch.int64), *lengths]),
        encoder.max_tokens,
        encoder.spec,
    )
    if not (table.tokens.isfinite().all() and table.pooled.isfinite().all()):
        raise ValueError(f"the encoder {encoder.spec} gives states that are not finite in fp16")
    return table
