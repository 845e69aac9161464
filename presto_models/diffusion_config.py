"""What a checkpoint's diffusion.safetensors says beside its weights, and the two together to a file and back."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from presto_kernels import LayerSchedule
from presto_models.checkpoint import CheckpointError, load_into, load_weights, save_weights
from presto_models.components import DIFFUSION_FILE
from presto_models.diffusion import EDM
from presto_models.diffusion.sampling import Sampling
from presto_models.dit import DiT
from presto_models.dit_config import DiTConfig
from presto_models.text import Conditioner

KIND, FILE = "diffusion", DIFFUSION_FILE
Parameterization = Literal["edm", "cm", "ctm"]


@dataclass(frozen=True)
class DiffusionConfig:
    """Everything about a diffusion model that is not a weight.

    Args:
        dit: sizes of the transformer.
        latent_mean, latent_std: of the autoencoder's latents, C numbers each; the DiT works on
            z = (latent - mean) / std * sigma_data.
        sigma_data: standard deviation of z.
        text: spec of the text encoder, as :func:`presto_models.text.load_text_encoder` takes it; None: no encoder.
        tags: field to values, or None.
        sampling: what a generation does unless it is told otherwise.
        schedule: which blocks run at which noise level; None: all.
        max_seconds: the longest piece; None: any.
        base: the checkpoint that components which are not in this folder come from: a shipped name, a folder relative
            to this one or absolute, or a hub id; None: all are here.
        guidance_baked: the scale a student's teacher was guided with, which the student then needs no guidance for;
            None: no student, or one that takes the scale as an input.
        parameterization: ``"edm"``; ``"cm"``, a consistency model, whose denoiser is x itself at sampling.sigma_min;
            ``"ctm"``, a consistency trajectory model, whose network is also told where a jump goes.
    """

    dit: DiTConfig
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    sigma_data: float = 0.5
    text: str | Mapping[str, Any] | None = None
    tags: Mapping[str, Any] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    schedule: LayerSchedule | None = None
    max_seconds: float | None = None
    base: str | None = None
    guidance_baked: float | None = None
    parameterization: Parameterization = "edm"

    def __post_init__(self) -> None:
        for name in ("latent_mean", "latent_std"):
            values = getattr(self, name)
            if len(values) != self.dit.in_channels or not all(math.isfinite(v) for v in values):
                raise ValueError(f"{name} must hold {self.dit.in_channels} finite numbers, got {len(values)}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be positive or None, got {self.max_seconds}")
        if self.base is not None and not (isinstance(self.base, str) and self.base):
            raise ValueError(f"base must name a checkpoint or be None, got {self.base!r}")
        if self.guidance_baked is not None and not 0 <= self.guidance_baked < math.inf:
            raise ValueError(f"guidance_baked must be at least 0 and finite, or None; got {self.guidance_baked}")
        if self.parameterization not in get_args(Parameterization):
            known = ", ".join(get_args(Parameterization))
            raise ValueError(f"parameterization must be one of {known}; got {self.parameterization!r}")
        if self.parameterization == "ctm" and not self.dit.takes_sigma_to:
            raise ValueError("parameterization 'ctm' needs a DiT with takes_sigma_to, and this one has it not")
        self.check(self.sampling, self.schedule)

    def check(self, sampling: Sampling, schedule: LayerSchedule | None) -> None:
        """ValueError where the model cannot be walked so: a schedule of another depth, jumps it was not made for."""
        if sampling.sampler == "ctm" and self.parameterization != "ctm":
            raise ValueError(
                f"sampler 'ctm' is for consistency trajectory models, and this model is {self.parameterization!r}"
            )
        if schedule is not None:
            self.dit.check_schedule(schedule)

    def denoiser(self, dit: nn.Module) -> EDM:
        """``dit``, or what stands in its place, in the preconditioning it was trained with."""
        boundary = self.sampling.sigma_min if self.parameterization == "cm" else 0.0
        return EDM(dit, self.sigma_data, boundary_sigma=boundary)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiffusionConfig:
        """Of the JSON in a checkpoint: ``dit`` and ``latents`` must be there, what else is missing is the default."""
        missing = [name for name in ("dit", "latents") if name not in values]
        if missing:
            raise ValueError(f"the config of a diffusion model must have {', '.join(missing)}; it has {list(values)}")
        schedule = values.get("schedule")
        return cls(
            dit=DiTConfig.from_dict(values["dit"]),
            latent_mean=tuple(values["latents"]["mean"]),
            latent_std=tuple(values["latents"]["std"]),
            sigma_data=values.get("sigma_data", 0.5),
            text=values.get("text"),
            tags=values.get("tags"),
            sampling=Sampling.from_dict(values.get("sampling") or {}),
            schedule=None if schedule is None else LayerSchedule.from_dict(schedule),
            max_seconds=values.get("max_seconds"),
            base=values.get("base"),
            guidance_baked=values.get("guidance_baked"),
            parameterization=values.get("parameterization", "edm"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "dit": self.dit.to_dict(),
            "sigma_data": self.sigma_data,
            "latents": {"mean": list(self.latent_mean), "std": list(self.latent_std)},
            "text": self.text,
            "tags": self.tags,
            "sampling": self.sampling.to_dict(),
            "schedule": None if self.schedule is None else self.schedule.to_dict(),
            "max_seconds": self.max_seconds,
            "base": self.base,
            "guidance_baked": self.guidance_baked,
            "parameterization": self.parameterization,
        }


def save_diffusion(
    path: str | os.PathLike[str], config: DiffusionConfig, dit: DiT, conditioner: Conditioner | None = None
) -> Path:
    """Write the DiT (``dit.*``) and what of the conditioner is trained (``conditioner.*``), in the dtypes they have."""
    parts = {"dit": dit, **({} if conditioner is None else {"conditioner": conditioner})}
    weights = {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
    return save_weights(path, weights, kind=KIND, config=config.to_dict())


def load_diffusion(
    path: str | os.PathLike[str], *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[DiffusionConfig, DiT, Conditioner | None]:
    """The model :func:`save_diffusion` wrote, for inference; the conditioner stays fp32, and is None without ``text``.

    Raises:
        FileNotFoundError: no such file.  CheckpointError: cut short, foreign, or it does not fit its config.
    """
    weights, values = load_weights(path, kind=KIND)
    try:
        config = DiffusionConfig.from_dict(values)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} has a config this presto cannot use: {error}") from error
    dit = DiT(config.dit).to(device=device, dtype=dtype)
    load_into(dit, _under("dit.", weights), source=path)
    conditioner = None
    if config.text is not None:
        conditioner = Conditioner.from_config({"text": config.text, "tags": config.tags}, device=device)
        load_into(conditioner, _under("conditioner.", weights), source=path)
        conditioner.eval().requires_grad_(False)
    return config, dit.eval().requires_grad_(False), conditioner


def _under(prefix: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
