"""What a generation is conditioned on, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Text for a batch of B samples.

    Args:
        tokens: ``[B, L, text_dim]``, floating point, L >= 1: the text encoder's states, padded on the right.
        pooled: ``[B, pooled_dim]``, floating point, or None for a model that takes none.
        lengths: ``[B]``, int32 or int64: how many tokens of each sample are text.  They are clamped to [0, L] where
            they are used.  Padding never reaches the result, and a sample with no text gets exactly nothing from
            cross-attention.  None: all L are text.

    Raises:
        TypeError: a dtype does not fit.  ValueError: a shape or device does not fit.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        tokens, pooled, lengths = self.tokens, self.pooled, self.lengths
        if not isinstance(tokens, Tensor) or not tokens.is_floating_point():
            raise TypeError(f"tokens must be a floating-point tensor, got {_describe(tokens)}")
        if tokens.dim() != 3 or tokens.shape[1] < 1:
            raise ValueError(f"tokens must be [B, L, text_dim] with L >= 1, got {tuple(tokens.shape)}")
        if pooled is not None:
            if not isinstance(pooled, Tensor) or not pooled.is_floating_point():
                raise TypeError(f"pooled must be a floating-point tensor or None, got {_describe(pooled)}")
            if pooled.dim() != 2 or pooled.shape[0] != tokens.shape[0]:
                raise ValueError(f"pooled must be [{tokens.shape[0]}, pooled_dim], got {tuple(pooled.shape)}")
            if pooled.device != tokens.device:
                raise ValueError(f"pooled must be on tokens' device {tokens.device}, got {pooled.device}")
        if lengths is not None:
            if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int32, torch.int64):
                raise TypeError(f"lengths must be an int32 or int64 tensor or None, got {_describe(lengths)}")
            if lengths.shape != tokens.shape[:1]:
                raise ValueError(f"lengths must be [{tokens.shape[0]}], got {tuple(lengths.shape)}")
            if lengths.device != tokens.device:
                raise ValueError(f"lengths must be on tokens' device {tokens.device}, got {lengths.device}")

    @property
    def batch_size(self) -> int:
        """B."""
        return self.tokens.shape[0]

    def __getitem__(self, samples: slice) -> Conditioning:
        """The samples in a slice."""
        if not isinstance(samples, slice):
            raise TypeError(f"a Conditioning is indexed by a slice of samples, got {type(samples).__name__}")
        return Conditioning(
            self.tokens[samples],
            None if self.pooled is None else self.pooled[samples],
            None if self.lengths is None else self.lengths[samples],
        )

    def text_mask(self) -> Tensor:
        """bool ``[B, L]``: which tokens are text."""
        positions = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return positions < self._lengths().unsqueeze(1)

    def null(self) -> Conditioning:
        """No text, in the same shapes: the unconditional half of classifier-free guidance, and what training drops to.

        Zero tokens and a zero pooled vector.  The DiT's text keys and values have no bias, so zero tokens add exactly
        0.
        """
        return Conditioning(
            torch.zeros_like(self.tokens),
            None if self.pooled is None else torch.zeros_like(self.pooled),
            None if self.lengths is None else torch.zeros_like(self.lengths),
        )

    def with_null(self) -> Conditioning:
        """``[2B]``: these samples, then the same many without text; what one batched guided call takes."""
        return Conditioning.cat((self, self.null()))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """Moved and cast; ``lengths`` stays whole-numbered."""
        return replace(
            self,
            tokens=self.tokens.to(device=device, dtype=dtype),
            pooled=None if self.pooled is None else self.pooled.to(device=device, dtype=dtype),
            lengths=None if self.lengths is None else self.lengths.to(device=device),
        )

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """One batch of several.  Shorter texts are padded to the longest, and ``lengths`` then says so."""
        parts = tuple(parts)
        if not parts:
            raise ValueError("parts must hold at least one Conditioning, got none")
        if len({part.tokens.shape[2] for part in parts}) > 1:
            raise ValueError(f"parts must share text_dim, got {[part.tokens.shape[2] for part in parts]}")
        if len({None if part.pooled is None else part.pooled.shape[1] for part in parts}) > 1:
            raise ValueError("parts must all have pooled vectors of one width, or none")
        longest = max(part.tokens.shape[1] for part in parts)
        tokens = torch.cat([F.pad(part.tokens, (0, 0, 0, longest - part.tokens.shape[1])) for part in parts])
        pooled = None
        if parts[0].pooled is not None:
            pooled = torch.cat([part.pooled for part in parts if part.pooled is not None])
        lengths = None
        if any(part.lengths is not None or part.tokens.shape[1] != longest for part in parts):
            lengths = torch.cat([part._lengths() for part in parts])
        return Conditioning(tokens, pooled, lengths)

    def _lengths(self) -> Tensor:
        if self.lengths is not None:
            return self.lengths.to(torch.int64)
        size, longest = self.tokens.shape[:2]
        return torch.full((size,), longest, dtype=torch.int64, device=self.tokens.device)


def _describe(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
