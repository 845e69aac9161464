"""A moving average of a module that can be run beside it: what a consistency model is compared with."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from presto_models.diffusion import EDM


class Target(nn.Module):
    """target <- target + (1 - decay) (student - target), in fp32, from the student's own weights on.

    Its weights are buffers: they are saved and restored with the module this one is a part of, and no optimiser, no
    gradient and no :class:`presto_models.training.ema.EMA` knows them.

    Args:
        student: of unsharded weights.
    """

    def __init__(self, student: EDM, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.edm = deepcopy(student)
        for part in self.edm.modules():
            for name, weight in list(part.named_parameters(recurse=False)):
                delattr(part, name)
                part.register_buffer(name, weight.detach())

    @torch.no_grad()
    def follow(self, student: EDM) -> None:
        """One step towards the student's weights as they are."""
        own = dict(self.edm.named_buffers())
        weights = dict(student.named_parameters())
        torch._foreach_lerp_([own[name] for name in weights], list(weights.values()), 1 - self.decay)
