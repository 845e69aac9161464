"""Dropout of conditions in training: what makes classifier-free guidance possible (Ho & Salimans 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from presto_models.conditioning import Conditioning


def drop_conditioning(
    conditioning: Conditioning, probability: float, generator: torch.Generator | None = None
) -> Conditioning:
    """Each sample by itself with this probability exactly :meth:`Conditioning.null`, otherwise as it is.

    Args:
        probability: from 0 to 1.
        generator: one number a sample is drawn from it (none where probability is 0); None: torch's own on the CPU.
    """
    (dropped,) = draw_drops(conditioning.batch_size, generator, probability=probability)
    return nullify(conditioning, dropped)


def draw_drops(size: int, generator: torch.Generator | None, **probabilities: float) -> tuple[Tensor, ...]:
    """For each probability a bool ``[size]`` on the CPU: which samples are dropped.

    Either every probability draws or, where all are 0, none: switching one of them on does not shift the others.
    """
    for name, probability in probabilities.items():
        if not 0 <= probability <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {probability}")
    if not any(probabilities.values()):
        return tuple(torch.zeros(size, dtype=torch.bool) for _ in probabilities)
    device = torch.device("cpu") if generator is None else generator.device
    draws = torch.rand(len(probabilities), size, generator=generator, device=device).cpu()
    return tuple(draw < probability for draw, probability in zip(draws, probabilities.values(), strict=True))


def nullify(conditioning: Conditioning, dropped: Tensor) -> Conditioning:
    """``conditioning`` with the samples where ``dropped``, bool ``[B]``, is set replaced by null."""
    if not dropped.any():
        return conditioning
    dropped = dropped.to(conditioning.tokens.device)
    pooled, lengths = conditioning.pooled, conditioning.lengths
    return Conditioning(
        conditioning.tokens.masked_fill(dropped[:, None, None], 0),
        None if pooled is None else pooled.masked_fill(dropped[:, None], 0),
        None if lengths is None else lengths.masked_fill(dropped, 0),
    )
