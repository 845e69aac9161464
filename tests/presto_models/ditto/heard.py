"""Music as controls hear it, without a model that makes it; and an eye on what a step asks the device."""

import torch
from small_pipeline import small_pipeline
from torch.utils._python_dispatch import TorchDispatchMode

from presto_models.ditto import Made, Scene

RATE = 8000


class Heard(Made):
    """Music of given audio ``[samples]`` or ``[B, samples]``."""

    def __init__(self, scene, audio):
        super().__init__(scene, torch.zeros(0))
        self.audio = audio.reshape(-1, 1, audio.shape[-1])


def scene_of(seconds=3.0, batch=1):
    return Scene(small_pipeline(), round(seconds * RATE), batch)


def tone(frequency, seconds, *, rate=RATE, level=0.1):
    return level * torch.sin(2 * torch.pi * frequency * torch.arange(round(seconds * rate)) / rate)


def noise(seconds, *, rate=RATE, level=0.1, seed=0):
    return level * torch.randn(round(seconds * rate), generator=torch.Generator().manual_seed(seed))


class NoQuestions(TorchDispatchMode):
    """Raises where a tensor's value or a shape that depends on one is asked for."""

    ASKS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.item")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not str(func).startswith(self.ASKS), func
        return func(*args, **(kwargs or {}))
