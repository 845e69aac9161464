"""Patch discriminators on hidden states of the fake score network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SHORTEST = 64  # latents: four halvings leave what the last kernel of four covers


class PatchHead(nn.Module):
    """Scores of patches: hidden states ``[B, N, D]`` to ``[B, P]``, N >= 64.

    Four times Conv1d (kernel 4, stride 2), GroupNorm, SiLU, then a Conv1d of kernel 4 to one channel, fp32: a score
    every 16 latents.  The form is that of the same author's later ARC (2505.08175); Presto's own could not be read.

    Args:
        dim: D.  width: channels inside, a multiple of ``groups``.
    """

    def __init__(self, dim: int, *, width: int = 224, groups: int = 32) -> None:
        super().__init__()
        if width % groups:
            raise ValueError(f"width must be a multiple of groups = {groups}, got {width}")
        layers: list[nn.Module] = []
        for channels in (dim, width, width, width):
            layers += [nn.Conv1d(channels, width, 4, stride=2, padding=1), nn.GroupNorm(groups, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv1d(width, 1, 4, padding=1))

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            scores: Tensor = self.layers(hidden.float().transpose(1, 2))
        return scores.squeeze(1)


class Discriminator(nn.Module):
    """A :class:`PatchHead` on each of several hidden states; their scores side by side, ``[B, P]``."""

    def __init__(self, dim: int, heads: int, *, width: int, groups: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(PatchHead(dim, width=width, groups=groups) for _ in range(heads))

    def forward(self, hidden: Sequence[Tensor]) -> Tensor:
        return torch.cat([head(states) for head, states in zip(self.heads, hidden, strict=True)], dim=1)


def discriminator_loss(real: Tensor, fake: Tensor, *, relativistic: bool) -> Tensor:
    """Least squares (Mao et al. 2017): mean (D(real) - 1)^2 + mean D(fake)^2, the form Presto-S has (2410.05167).

    ``relativistic``: mean (D(real) - D(fake) - 1)^2 of pairs of one prompt, after ARC (2505.08175).  Scores ``[B, P]``.
    """
    if relativistic:
        return (real - fake - 1).square().mean()
    return (real - 1).square().mean() + fake.square().mean()


def generator_loss(real: Tensor | None, fake: Tensor) -> Tensor:
    """mean (D(fake) - 1)^2; with ``real`` the relativistic mean (D(fake) - D(real) - 1)^2."""
    return (fake - 1).square().mean() if real is None else (fake - real - 1).square().mean()
