"""What is being made, as controls see it: before the first step a scene, after each walk the music."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from presto_models.data.audio_files import resampled
from presto_models.pipeline import PrestoPipeline

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Scene:
    """Music of ``samples`` samples in a batch of ``batch``, by a pipeline.

    What controls hear is the autoencoder's output, before any mono-to-stereo module: it is linear enough in loudness,
    pitch and timbre that what holds for one channel holds for two.
    """

    pipeline: PrestoPipeline
    samples: int
    batch: int = 1

    @property
    def length(self) -> int:
        """N latents that hold the samples."""
        return self.pipeline.autoencoder.latents_for(self.samples)

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate

    @property
    def sample_rate(self) -> int:
        return self.pipeline.sample_rate

    @property
    def hop(self) -> int:
        """Samples a latent stands for."""
        return self.pipeline.autoencoder.hop

    @property
    def channels(self) -> int:
        """Of the autoencoder, 1 or 2."""
        return self.pipeline.autoencoder.audio_channels

    @property
    def device(self) -> torch.device:
        return self.pipeline.device

    def audio(self, waveform: Tensor, sample_rate: int, *, name: str = "reference") -> Tensor:
        """``waveform`` ``[channels, T]`` or ``[T]`` as this pipeline's own: fp32 ``[channels, T']`` on its device.

        Raises:
            TypeError, ValueError: no audio, NaN in it, or no rate; ``name`` is what the message calls it.
        """
        if isinstance(sample_rate, bool) or not isinstance(sample_rate, int) or sample_rate < 1:
            raise ValueError(f"sample_rate of {name} must be a whole number of Hz above 0, got {sample_rate!r}")
        if not isinstance(waveform, Tensor) or not waveform.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {getattr(waveform, 'dtype', type(waveform))}")
        if waveform.dim() == 1:
            waveform = waveform[None]
        if waveform.dim() != 2 or waveform.shape[1] < 1 or waveform.shape[0] not in (1, 2):
            raise ValueError(f"{name} must be [samples], [1, samples] or [2, samples], got {tuple(waveform.shape)}")
        if not bool(waveform.isfinite().all()):
            raise ValueError(f"{name} must be finite, and holds NaN or infinity")
        waveform = waveform.detach().float().cpu()
        if waveform.shape[0] != self.channels:
            waveform = waveform.mean(0, keepdim=True).expand(self.channels, -1)
        if sample_rate != self.sample_rate:
            waveform = resampled(waveform, sample_rate, self.sample_rate)
        return waveform.contiguous().to(self.device)

    def encode(self, audio: Tensor) -> Tensor:
        """Audio as :meth:`audio` gives it to what the DiT works on, ``[N, C]`` fp32."""
        return self.pipeline.engine.encode(audio[None])[0]

    def decode(self, x: Tensor) -> Tensor:
        """What the DiT works on, ``[B, N, C]``, to audio ``[B, channels, samples]`` fp32; gradients flow."""
        return self.pipeline.engine.decode(x)[..., : self.samples]

    def made(self, x: Tensor) -> Made:
        """Music of which the latents are there, and the audio is where someone asks for it."""
        return Made(self, x)


class Made:
    """What a walk gave: ``x`` ``[B, N, C]``, what the DiT works on, and the audio it stands for.

    What several controls need is computed once: the audio, and what :meth:`shared` is asked for.
    """

    def __init__(self, scene: Scene, x: Tensor) -> None:
        self.scene, self.x = scene, x
        self._shared: dict[object, object] = {}

    @cached_property
    def audio(self) -> Tensor:
        """``[B, channels, samples]``, fp32."""
        return self.scene.decode(self.x)

    @cached_property
    def mono(self) -> Tensor:
        """``[B, samples]``, fp32: the mean of the channels."""
        return self.audio.mean(1)

    def shared(self, key: object, make: Callable[[], T]) -> T:
        """What ``make`` gives, once for each ``key``."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]  # type: ignore[return-value]
