"""What a generation knows before its first step, kept as frozen data and handed to the DiT's forward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class TextCache:
    """Every block's text keys and values: once per prompt, whatever the steps.

    ``keys_values``: for each block of the model (k, v), each ``[B, L, H, Dh]``, k already normalised.
    ``lengths``: ``[B]``, how many tokens are text, or None: all.  ``mask``: bool ``[B, L]``, the same as
    :meth:`presto_models.Conditioning.text_mask` gives it, for attention that takes a mask.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    lengths: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a fixed schedule, as ``DiT.forward(precomputed=...)`` takes it.

    ``sigma``: its noise level.  ``blocks``: indices of the blocks that run.  ``modulation``: for each of them
    ``[B|1, 6, D]`` (scale, shift, gate of self-attention; scale, shift, gate of SwiGLU), then the final layer's
    ``[B|1, 2, D]`` (scale, shift).  ``rotary``: (cos, sin) for the length it was made for, or None.
    """

    sigma: float
    blocks: tuple[int, ...]
    modulation: tuple[Tensor, ...]
    text: TextCache
    rotary: tuple[Tensor, Tensor] | None


@dataclass(frozen=True, eq=False)
class Precomputed:
    """Every step of a fixed schedule; made by ``DiT.precompute``."""

    steps: tuple[Step, ...]
    text: TextCache

    def __len__(self) -> int:
        return len(self.steps)

    def step(self, index: int) -> Step:
        """The step at ``index``, in the order of the noise levels."""
        return self.steps[index]
