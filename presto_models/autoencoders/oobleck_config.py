"""Sizes of the Oobleck autoencoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class OobleckConfig:
    """Sizes of an :class:`Oobleck`.

    Args:
        channels: of the decoder at the audio's rate.
        encoder_channels: of the encoder at the audio's rate.
        multiples: by how much wider it is below each of the strides, from the audio down.
        strides: by how much the rate falls from level to level, from the audio down; even.
        latent_channels: C.
        audio_channels: 1 or 2.
        sample_rate: Hz.
    """

    channels: int = 128
    encoder_channels: int = 128
    multiples: tuple[int, ...] = (1, 2, 4, 8, 16)
    strides: tuple[int, ...] = (2, 4, 4, 8, 8)
    latent_channels: int = 64
    audio_channels: int = 2
    sample_rate: int = 44100

    def __post_init__(self) -> None:
        for name in ("multiples", "strides"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be positive numbers, got {getattr(self, name)}")
        for name in ("channels", "encoder_channels", "latent_channels", "sample_rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.audio_channels not in (1, 2):
            raise ValueError(f"audio_channels must be 1 or 2, got {self.audio_channels}")
        if len(self.strides) != len(self.multiples):
            raise ValueError(f"as many strides as multiples are due, got {self.strides} and {self.multiples}")
        if any(stride % 2 for stride in self.strides):
            raise ValueError(
                f"strides must be even, got {self.strides}: with an odd one the original loses a sample a level"
            )

    @property
    def hop(self) -> int:
        """Samples of audio a latent stands for."""
        return math.prod(self.strides)

    def widths(self, channels: int) -> tuple[int, ...]:
        """Channels of every level from the audio down, one more than there are strides."""
        return channels, *(multiple * channels for multiple in self.multiples)

    @classmethod
    def named(cls, name: str) -> OobleckConfig:
        """``"stable-audio"``: Stable Audio Open 1.0, stereo, hop 2048.

        ``"presto-32s"``: the same network for mono at hop 1024, for the paper-scale pipeline; Presto's own sizes could
        not be read.  ``"tiny"``: for tests.
        """
        if name not in _NAMED:
            raise ValueError(f"name must be one of {', '.join(_NAMED)}; got {name!r}")
        return cls(**_NAMED[name])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OobleckConfig:
        """The config :meth:`to_dict` wrote."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


_NAMED: dict[str, dict[str, Any]] = {
    "stable-audio": {},
    "presto-32s": {"audio_channels": 1, "strides": (2, 4, 4, 4, 8)},
    "tiny": {
        "channels": 12,
        "encoder_channels": 8,
        "multiples": (1, 2, 4),
        "strides": (2, 4, 6),
        "latent_channels": 4,
    },
}
