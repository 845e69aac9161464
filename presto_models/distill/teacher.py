"""The model that is distilled, and what a student's checkpoint takes over from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from presto_models.checkpoint import find_folder, load_into, save_weights
from presto_models.components import DIFFUSION_FILE, lender
from presto_models.diffusion.edm import EDM
from presto_models.diffusion_config import KIND, DiffusionConfig, load_diffusion
from presto_models.dit import DiT
from presto_models.dit_config import DiTConfig
from presto_models.text import Conditioner


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained diffusion model: frozen, fp32.

    Attributes:
        name: as it was asked for: a shipped checkpoint, a folder or a hub id.
        config: of its diffusion.safetensors.
        conditioner: frozen; students are conditioned by it too.
    """

    name: str
    config: DiffusionConfig
    dit: DiT
    conditioner: Conditioner

    @classmethod
    def load(cls, name: str | os.PathLike[str]) -> Teacher:
        """Of a checkpoint's folder.

        Raises:
            FileNotFoundError: there is none.  CheckpointError: it is damaged.  ValueError: it has no text encoder.
        """
        config, dit, conditioner = load_diffusion(find_folder(name) / DIFFUSION_FILE)
        if conditioner is None:
            raise ValueError(f"teacher {str(name)!r} has no text encoder, so there is nothing to condition students on")
        return cls(str(name), config, dit, conditioner)

    def student(self, **changes: Any) -> EDM:
        """A trainable copy around EDM's preconditioning, with ``changes`` of its :class:`DiTConfig`.

        What the changes add (an embedding of a second noise level, of the guidance scale) starts at zero output, so
        that the student starts as its teacher.  The budgets' embedding is not trained unless it is asked for.
        """
        config = replace(self.config.dit, **changes)
        student = DiT(config)
        weights = self.dit.state_dict()
        new = {name: value for name, value in student.state_dict().items() if name not in weights}
        load_into(student, {**weights, **new}, source=f"teacher {self.name!r}")
        student.condition.budget.requires_grad_(False)
        return EDM(student, self.config.sigma_data)

    def check_architecture(self, what: str, dit: DiTConfig) -> None:
        """ValueError where a model of ``dit`` has not this teacher's architecture; ``what`` names it in the message.
        How many last blocks a budget keeps is no part of that."""
        own, other = self.config.dit.to_dict(), dit.to_dict()
        apart = [f"{k} {v}, not {own[k]}" for k, v in other.items() if v != own[k] and k != "keep_last"]
        if apart:
            raise ValueError(
                f"{what} has not the architecture of its teacher {self.name!r}: {', '.join(apart)}. A student has its "
                "teacher's; give the teacher that it came from"
            )

    def check_latents(self, data: str, mean: Tensor) -> None:
        """ValueError where the latents in ``data``, of this mean ``[C]``, are not those the teacher was trained on."""
        config = self.config
        if config.dit.in_channels != mean.shape[0]:
            raise ValueError(
                f"teacher {self.name!r} works on {config.dit.in_channels} latent channels, {data} has "
                f"{mean.shape[0]}: encode the audio with the teacher's own autoencoder (data encode)"
            )
        apart = (mean - torch.tensor(config.latent_mean)).abs() / torch.tensor(config.latent_std)
        if float(apart.max()) > 0.5:
            raise ValueError(
                f"the latents in {data} are not the teacher's: their mean is up to {float(apart.max()):.1f} "
                f"standard deviations away from what {self.name!r} was trained on; encode the audio with its own "
                "autoencoder (data encode)"
            )

    @property
    def base(self) -> str:
        """Where a student's checkpoint finds its other components: the name, or the whole path of a folder."""
        return lender(self.name)

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """(mean, std) of the latents, ``[C]`` each."""
        return torch.tensor(self.config.latent_mean), torch.tensor(self.config.latent_std)

    def save_student(self, folder: Path, weights: Mapping[str, Tensor], config: DiffusionConfig) -> Path:
        """diffusion.safetensors of a student in bf16: its weights by name, and the teacher's conditioner.

        ``config.base`` should name the checkpoint that has the other components.
        """
        stored = {f"dit.{name}": tensor.to(torch.bfloat16) for name, tensor in weights.items()}
        own = self.conditioner.state_dict().items()
        stored |= {f"conditioner.{name}": tensor.to(torch.bfloat16) for name, tensor in own}
        return save_weights(folder / DIFFUSION_FILE, stored, kind=KIND, config=config.to_dict())
