"""A small network beside a frozen diffusion transformer that makes it follow control signals.

    r = W_out norm(blocks([c_in x; signals; given], sigma)),   W_out = 0 at first
    F = DiT(c_in x, sigma, text; embedded latents + r)

Music ControlNet (Wu et al. 2023, 2311.07069) trains a copy of its U-Net's encoder on time-varying controls, through
projections that start at zero, while the model itself stays as it is; that is kept here, and so is that the network
sees the noisy latents and the noise level beside the controls, and that controls may be left out, or hold for a part of
the time only.  What is ours: no copy but a few modulated ConvNeXt blocks (2201.03545), since our transformer has one
resolution, and one place where they add, the embedded latents: its residual stream carries them past every block.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_kernels import adaln_modulate, gated_residual, swiglu
from presto_models.checkpoint import CheckpointError, load_into, load_weights, save_weights
from presto_models.conditioning import Conditioning
from presto_models.dit import DiT
from presto_models.dit_config import DiTConfig
from presto_models.ditto.adaptor.signals import CONTROLS, WIDTH
from presto_models.embeddings import embedding_mlp, fourier_features, noise_level
from presto_models.precomputed import Precomputed

KIND, FILE = "adaptor", "adaptor.safetensors"
LOUD_CENTRE, LOUD_SCALE = -25.0, 8.0  # dB; our music is -36 to -17, so about [-1, 1]; silence is far below


@dataclass(frozen=True)
class AdaptorConfig:
    """Sizes of an :class:`Adaptor`.

    Args:
        in_channels, out_dim: of the DiT it is for: C, and its width.
        controls: those it is trained for, of ``"loudness"`` and ``"melody"``.
        dim, mlp_dim, num_blocks: width, inner width and depth of the blocks.
        kernel_size: of the depthwise convolution over latents, odd.
        noise_features: of the embedding of the noise level, even.
    """

    in_channels: int
    out_dim: int
    controls: tuple[str, ...] = CONTROLS
    dim: int = 256
    mlp_dim: int = 512
    num_blocks: int = 4
    kernel_size: int = 7
    noise_features: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "controls" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        if self.kernel_size % 2 == 0 or self.noise_features % 2:
            raise ValueError(
                f"kernel_size must be odd and noise_features even, got {self.kernel_size} and {self.noise_features}"
            )
        check_controls(self.controls)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AdaptorConfig:
        """The config :meth:`to_dict` wrote."""
        return cls(**{**values, "controls": tuple(values["controls"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "controls": list(self.controls)}


def check_controls(controls: tuple[str, ...]) -> None:
    """ValueError unless these are controls there are signals for, each once, at least one."""
    if not controls or not set(controls) <= set(CONTROLS) or len(set(controls)) != len(controls):
        raise ValueError(f"controls must be some of {', '.join(CONTROLS)}, each once, at least one; got {controls}")


class Adaptor(nn.Module):
    """See this module's docstring.  The last layer starts at zero: a fresh adaptor changes nothing, bitwise."""

    def __init__(self, config: AdaptorConfig) -> None:
        super().__init__()
        self.config = config
        self.proj_in = nn.Linear(config.in_channels + WIDTH + len(CONTROLS), config.dim)
        self.noise = embedding_mlp(config.noise_features, config.dim)
        self.blocks = nn.ModuleList(AdaptorBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.Parameter(torch.ones(config.dim))
        self.proj_out = nn.Linear(config.dim, config.out_dim)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, sigma: Tensor, signals: Tensor, given: Tensor) -> Tensor:
        """What is added to the embedded latents, ``[B, N, out_dim]``.

        Args:
            x: ``[B, N, C]``, noisy latents times c_in, as the DiT gets them.
            sigma: ``[B]``, noise levels.
            signals: ``[B, N, 13]``, as :func:`presto_models.ditto.adaptor.signals.signals` gives them.
            given: ``[B, N, 2]``, bool: where loudness and where melody is asked for; what the signals hold elsewhere,
                NaN too, is not read.

        A sample for which nothing is asked anywhere gets exactly 0: it stays the DiT's own.
        """
        batch, length, _ = x.shape
        if signals.shape != (batch, length, WIDTH) or given.shape != (batch, length, len(CONTROLS)):
            raise ValueError(
                f"signals and given must be {(batch, length, WIDTH)} and {(batch, length, len(CONTROLS))}, got "
                f"{tuple(signals.shape)} and {tuple(given.shape)}"
            )
        loudness, melody = signals.split((1, WIDTH - 1), dim=-1)
        values = torch.cat(((loudness - LOUD_CENTRE) / LOUD_SCALE, melody), -1)
        asked = torch.cat((given[..., :1], given[..., 1:].expand(-1, -1, WIDTH - 1)), -1)
        inputs = torch.cat((x, values.masked_fill(~asked, 0), given), -1)
        h = self.proj_in(inputs.to(self.proj_in.weight.dtype))
        features = fourier_features(noise_level(sigma), self.config.noise_features)
        level = F.silu(self.noise(features.to(self.proj_in.weight.dtype)))
        for block in self.blocks:
            h = block(h, level)
        added = self.proj_out(adaln_modulate(h, None, None, weight=self.norm))
        return added.masked_fill(~given.flatten(1).any(1)[:, None, None], 0)


class AdaptorBlock(nn.Module):
    """x + gate * W2 swiglu(W1 (norm(depthwise(x)) (1 + scale) + shift)), scale and shift of the noise level."""

    def __init__(self, config: AdaptorConfig) -> None:
        super().__init__()
        dim, size = config.dim, config.kernel_size
        self.depthwise = nn.Conv1d(dim, dim, size, padding=size // 2, groups=dim)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.proj_in = nn.Linear(dim, 2 * config.mlp_dim)
        self.proj_out = nn.Linear(config.mlp_dim, dim)
        self.gate = nn.Parameter(torch.full((dim,), 0.3))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """``[B, N, dim]`` and the noise level ``[B, dim]`` to ``[B, N, dim]``."""
        h = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        scale, shift = self.modulation(level).chunk(2, dim=-1)
        h = swiglu(self.proj_in(adaln_modulate(h, scale, shift)))
        return gated_residual(x, self.proj_out(h), self.gate)


class AdaptedDiT(nn.Module):
    """A DiT with an adaptor and what is asked of it; stands wherever the DiT stands (``EDM``, ``ScheduledDenoiser``).

    Args:
        dit: as it is; nothing of it is changed.
        adaptor: :class:`Adaptor`, or its like as wrapped for several processes.
        signals, given: ``[B, N, 13]`` and ``[B, N, 2]``.
        scale: what is added is multiplied with.
        guided: see below.

    A batch of ``k B`` is taken for k copies of the B samples: under classifier-free guidance two, the second without
    text.  ``guided`` leaves that one without signals too, so that guidance pulls towards the controls as it does
    towards the text; else they are on in both, and it pulls towards the text alone.
    """

    def __init__(
        self,
        dit: DiT,
        adaptor: nn.Module,
        signals: Tensor,
        given: Tensor,
        *,
        scale: float = 1.0,
        guided: bool = True,
    ) -> None:
        super().__init__()
        self.dit, self.adaptor, self.scale, self.guided = dit, adaptor, scale, guided
        self.signals, self.given = signals, given

    @property
    def config(self) -> DiTConfig:
        """The DiT's."""
        return self.dit.config

    def precompute(self, *args: Any, **kwargs: Any) -> Precomputed:
        """The DiT's: the adaptor changes none of it."""
        return self.dit.precompute(*args, **kwargs)

    def forward(self, x: Tensor, sigma: Tensor, conditioning: Conditioning, **more: Any) -> Tensor:
        """F ``[B, N, C]``; arguments are the DiT's."""
        batch, copies = len(self.signals), len(x) // len(self.signals)
        if self.guided:
            added = self.adaptor(x[:batch], sigma[:batch], self.signals, self.given)
            added = torch.cat((added, *(torch.zeros_like(added) for _ in range(copies - 1))))
        else:
            added = self.adaptor(x, sigma, self.signals.repeat(copies, 1, 1), self.given.repeat(copies, 1, 1))
        return cast(Tensor, self.dit(x, sigma, conditioning, added=self.scale * added, **more))


def save_adaptor(
    path: str | os.PathLike[str], config: AdaptorConfig, weights: Mapping[str, Tensor], *, teacher: str
) -> Path:
    """Write an adaptor's weights with its config and the name of the model it was trained for."""
    return save_weights(path, weights, kind=KIND, config={"model": config.to_dict(), "teacher": teacher})


def load_adaptor(path: str | os.PathLike[str], *, device: torch.device | str | None = None) -> Adaptor:
    """The adaptor in a file, or in a run's folder: fp32, frozen, in ``eval()``.

    Raises:
        FileNotFoundError: there is none.  CheckpointError: it is cut short, foreign, or does not fit its config.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    weights, values = load_weights(file, kind=KIND)
    try:
        config = AdaptorConfig.from_dict(values["model"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file} has a config this presto cannot use: {error}") from error
    adaptor = Adaptor(config)
    load_into(adaptor, weights, source=file)
    return adaptor.to(device).eval().requires_grad_(False)
