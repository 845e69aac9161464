"""Weights for checking and timing a model there is no checkpoint for."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def randomize_weights(model: nn.Module, *, seed: int = 0) -> None:
    """Draw every parameter anew, in place, so that each one matters to the output.

    A fresh DiT starts with zero gates and a zero last projection: whatever its blocks compute, it returns zeros, and a
    comparison of two implementations shows nothing.  Here matrices get variance 1 / fan-in, and vectors a standard
    deviation of 0.1, around 1 where the parameter is a norm's weight.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
        else:
            parameter.normal_(1.0 if name.endswith("norm") else 0.0, 0.1, generator=generator)
