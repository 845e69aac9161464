"""The control that `python -m bench ditto` asks for: music that grows louder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_models.ditto.control import Bound, Control
from presto_models.ditto.scene import Made, Scene

FIRST_DB, LAST_DB = -40.0, -15.0
FRAME, FLOOR = 2048, 1e-5


@dataclass(frozen=True, kw_only=True, eq=False)
class Crescendo(Control):
    """A straight line of smoothed loudness in dB."""

    def bind(self, scene: Scene) -> Bound:
        return BoundCrescendo(self, scene)


class BoundCrescendo(Bound):
    def __init__(self, control: Crescendo, scene: Scene) -> None:
        self.name = self.kind = "loudness"
        self.weight, self.threshold = control.weight, control.threshold
        self.spans = ((0.0, scene.seconds),)
        frames = max(scene.samples // FRAME, 1)
        self.reach = min(round(scene.sample_rate / FRAME) // 2, frames // 2)
        self.target = torch.linspace(FIRST_DB, LAST_DB, frames, device=scene.device)

    def feature(self, made: Made) -> Tensor:
        power = F.avg_pool1d(made.mono.square()[:, None], FRAME, ceil_mode=made.mono.shape[-1] < FRAME)
        db = 10 * power.clamp_min(FLOOR**2).log10()
        return F.avg_pool1d(db, 2 * self.reach + 1, 1, self.reach, count_include_pad=False)[:, 0]

    def error(self, made: Made) -> Tensor:
        return (self.feature(made) - self.target).square().mean(1)


def crescendo() -> Control:
    return Crescendo()
