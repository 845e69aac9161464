"""What a task brings to the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Player:
    """A module with its own optimiser.  A GAN has two; they move one after the other in each step.

    Args:
        module: its forward computes losses: what runs through it is what DDP and FSDP2 look after.
        learning_rate: at its peak; None: the run's.
        start: the first step in which it may move.
        every: it moves in each ``every``-th step from there on.
        betas: AdamW's; None: the run's.
    """

    name: str
    module: nn.Module
    learning_rate: float | None = None
    start: int = 0
    betas: tuple[float, float] | None = None
    every: int = 1

    def moves(self, step: int) -> bool:
        """Whether it moves in this step: where several players take turns, behind ``every`` moves of the others."""
        return step >= self.start and (step - self.start + 1) % self.every == 0

    def moved(self, step: int) -> int:
        """How often it has moved before this step."""
        return max(0, step - self.start) // self.every


@dataclass
class Samples:
    """What people hear and see: audio ``[channels, samples]`` in [-1, 1] and images ``[3, H, W]`` in [0, 1]."""

    sample_rate: int = 0
    audio: dict[str, Tensor] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)


class Task(ABC):
    """Data, losses and outputs of one kind of model.

    Everything random in it comes from (seed, step, sample) through :mod:`presto_models.training.seeding`, where sample
    counts through the whole batch of a step, whichever process holds it.
    """

    players: tuple[Player, ...]

    @abstractmethod
    def batch(self, step: int, part: int, parts: int) -> Any:
        """Part ``part`` of ``parts`` of the step's batch, on the CPU, with a method ``to(device)``.

        Called from threads, ahead of its step.

        Raises:
            ValueError: the step's batch cannot be split so.
        """

    @abstractmethod
    def loss(self, player: Player, module: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The player's loss of the batch, a scalar, and its named parts, detached scalars.

        ``module`` is the player's, as wrapped for several processes.  Parts are what gets logged.
        """

    @abstractmethod
    def describe(self, batch: Any) -> str:
        """What is in a batch, for the error that ends a run at a loss that is not finite."""

    def validate(self, rank: int, world: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Name to (sum, count) over this process's share of fixed validation data, with the same draws every time."""
        return {}

    def sample(self) -> Samples | None:
        """Something to hear and see; every process calls it, the first one writes it."""
        return None

    @abstractmethod
    def export(self, folder: Path, weights: Mapping[str, Mapping[str, Tensor]]) -> Path:
        """Write the component that others load; ``weights``: player name to averaged weights, whole, by name."""

    def watch(self, step: int, means: Mapping[str, float]) -> None:  # noqa: B027 most tasks cannot fail in ways of their own
        """Look at what was logged at ``step``, means over the steps since the last time and over all processes.

        Raises:
            DivergedError: the run has failed in a way that no number's being infinite tells; says what to try.
        """

    def shard(self, module: nn.Module, mesh: Any) -> nn.Module:
        """Split a player's module for FSDP2; called before its optimiser exists."""
        raise ValueError("strategy fsdp2 is for train diffusion and distill; this model fits every device: use ddp")

    def to(self, device: torch.device) -> None:  # noqa: B027 most tasks hold nothing beside their players
        """Move what the task holds beside its players (frozen models) to the device."""


class NonFiniteError(ArithmeticError):
    """A loss or a gradient was NaN or infinite; the weights are still those of the step before."""


class DivergedError(ArithmeticError):
    """Every number is finite and the run is lost all the same."""


def shares(count: int, rank: int, world: int, size: int) -> Iterator[tuple[list[int], Tensor]]:
    """This process's share of validation samples 0 .. count - 1 in chunks of at most ``size``: (numbers, how much each
    counts).

    Every process gets as many chunks of the same sizes, since a forward may be a collective call; where ``count`` does
    not divide, the last sample stands in once more and counts 0.
    """
    mine = range(rank, -(-count // world) * world, world)
    for first in range(0, len(mine), size):
        chunk = mine[first : first + size]
        yield [min(sample, count - 1) for sample in chunk], torch.tensor([float(sample < count) for sample in chunk])
