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
