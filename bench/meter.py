"""What memory a measurement is about: parameters, and modules of zeros; how it is measured is presto_models.memory."""

from __future__ import annotations

import torch

from presto_models.memory import Meter, give_back

__all__ = ["Meter", "give_back", "parameter_bytes", "zeros"]


def parameter_bytes(*modules: torch.nn.Module) -> int:
    """Of all parameters, those in several modules counted once."""
    return sum(p.nbytes for p in {id(p): p for module in modules for p in module.parameters()}.values())


def zeros(module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """A module made on "meta" with weights of zeros on a device: memory does not depend on their values."""
    module = module.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.zero_()
    return module
