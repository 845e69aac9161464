"""Two controls, of the audio and of the latents, and what counts the tensors a gradient keeps."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_models.ditto import Bound, Control

HOP = 64  # of small_pipeline


@dataclass(frozen=True, kw_only=True, eq=False)
class Level(Control):
    """Loudness of each frame of 256 samples in dB."""

    db: float = -20.0
    spans: tuple = ((0.0, 3.0),)

    def bind(self, scene):
        return BoundLevel(self, torch.full((scene.samples // 256,), self.db, device=scene.device))


class BoundLevel(Bound):
    name = kind = "loudness"

    def __init__(self, control, target):
        self.weight, self.threshold, self.spans = control.weight, control.threshold, control.spans
        self.target = target

    def feature(self, made) -> Tensor:
        frames = made.mono[:, : 256 * len(self.target)].unflatten(1, (-1, 256))
        return 10 * frames.square().mean(2).clamp(min=1e-10).log10()

    def error(self, made) -> Tensor:
        return (self.feature(made) - self.target).square().mean(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Near(Control):
    """The mean of the latents over time; ``spoiled_after``: from that many errors on they are NaN."""

    to: float = 0.5
    spoiled_after: int | None = None

    def bind(self, scene):
        return BoundNear(self, torch.full((scene.pipeline.autoencoder.latent_channels,), self.to))


class BoundNear(Bound):
    name = kind = "latents"
    spans = ((0.0, 3.0),)

    def __init__(self, control, target):
        self.weight, self.threshold, self.target = control.weight, control.threshold, target
        self.left = control.spoiled_after

    def feature(self, made) -> Tensor:
        return made.x.float().mean(1)

    def error(self, made) -> Tensor:
        error = (self.feature(made) - self.target).square().mean(1)
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                return error * float("nan")
        return error

    def figures(self, made):
        return {"mean": made.x.float().mean((1, 2))}


class Kept:
    """What autograd kept: how many tensors and bytes, all in all and at most at one time."""

    def __init__(self):
        self.tensors = self.bytes = self.now = self.most = 0

    @contextmanager
    def counting(self):
        kept = self

        class Held:
            def __init__(self, tensor):
                self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
                kept.tensors += 1
                kept.bytes += self.size
                kept.now += self.size
                kept.most = max(kept.most, kept.now)

            def __del__(self):
                kept.now -= self.size

        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            yield self
