"""Sizes and switches of the diffusion transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from presto_kernels import LayerSchedule


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a :class:`DiT`.  Architecture and sizes are ours: Presto's own could not be read.

    Args:
        num_blocks, dim, num_heads: depth, width, heads; a head has ``dim / num_heads`` dims.
        mlp_dim: inner width of SwiGLU.
        in_channels: latent channels C.
        text_dim: width of the text tokens.
        pooled_dim: width of the pooled text vector; 0: the model takes none.
        rotary_dim: how many dims of each head are rotated, even; None: all of them.
        rotary_base: the longest wavelength over 2 pi.
        norm_eps, qk_norm_eps: added to variance and mean square.
        noise_features: Fourier features of a noise level, even.
        takes_sigma_to: conditioned on a second noise level (CTM students).
        takes_guidance: conditioned on the guidance scale (students that take it as an input).
        keep_last: how many of the last blocks every layer budget keeps; 0 is ASE.
        nominal_latents: the length the model is made for; any other runs too.
    """

    num_blocks: int = 24
    dim: int = 1024
    num_heads: int = 16
    mlp_dim: int = 4096
    in_channels: int = 64
    text_dim: int = 768
    pooled_dim: int = 768
    rotary_dim: int | None = None
    rotary_base: float = 10000.0
    norm_eps: float = 1e-6
    qk_norm_eps: float = 1e-6
    noise_features: int = 256
    takes_sigma_to: bool = False
    takes_guidance: bool = False
    keep_last: int = 1
    nominal_latents: int = 1379

    def __post_init__(self) -> None:
        for name in ("num_blocks", "dim", "num_heads", "mlp_dim", "in_channels", "text_dim", "nominal_latents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dim % self.num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {self.dim} and {self.num_heads}")
        if self.rotary_dim is None:
            object.__setattr__(self, "rotary_dim", self.head_dim)
        if self.rotary_size % 2 or not 2 <= self.rotary_size <= self.head_dim:
            raise ValueError(f"rotary_dim must be even, from 2 to the head's {self.head_dim}, got {self.rotary_dim}")
        if self.pooled_dim < 0:
            raise ValueError(f"pooled_dim must be at least 0, got {self.pooled_dim}")
        if self.noise_features < 2 or self.noise_features % 2:
            raise ValueError(f"noise_features must be even and at least 2, got {self.noise_features}")
        if not 0 <= self.keep_last <= self.num_blocks:
            raise ValueError(f"keep_last must be from 0 to num_blocks = {self.num_blocks}, got {self.keep_last}")
        for name in ("rotary_base", "norm_eps", "qk_norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def head_dim(self) -> int:
        """Dims of one head."""
        return self.dim // self.num_heads

    @property
    def rotary_size(self) -> int:
        """``rotary_dim`` with None resolved."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    def check_schedule(self, schedule: LayerSchedule) -> None:
        """ValueError where ``schedule`` was made for another depth or another ``keep_last``."""
        if (schedule.num_blocks, schedule.keep_last) != (self.num_blocks, self.keep_last):
            raise ValueError(
                f"schedule must be made for the model's {self.num_blocks} blocks and keep_last {self.keep_last}, "
                f"got {schedule.num_blocks} and {schedule.keep_last}"
            )

    @classmethod
    def named(cls, name: str) -> DiTConfig:
        """``"presto-32s"``: paper scale, 32 s at 44.1 kHz and hop 1024 (1379 latents).  ``"tiny"``: for tests.

        Eight blocks are the fewest at which the default layer schedule has four different budgets.
        """
        if name not in _NAMED:
            raise ValueError(f"name must be one of {', '.join(_NAMED)}; got {name!r}")
        return cls(**_NAMED[name])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiTConfig:
        """The config :meth:`to_dict` wrote."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self)


_NAMED: dict[str, dict[str, Any]] = {
    "presto-32s": {},
    "tiny": {
        "num_blocks": 8,
        "dim": 128,
        "num_heads": 2,
        "mlp_dim": 384,
        "in_channels": 16,
        "text_dim": 48,
        "pooled_dim": 32,
        "noise_features": 32,
        "nominal_latents": 87,
    },
}
