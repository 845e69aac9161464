"""What every op asks of its arguments."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensor(op: str, name: str, t: object, x: Tensor | None = None, x_name: str = "x") -> None:
    """``t`` is a floating-point tensor of a dtype we take, and on the device of the op's first tensor."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(t).__name__}")
    if t.dtype not in DTYPES:
        raise TypeError(f"{op}: {name} must be float32, bfloat16, float16 or float64, got {t.dtype}")
    if x is not None and t.device != x.device:
        raise ValueError(f"{op}: {name} is on {t.device} and {x_name} on {x.device}; put both on one device")


def refuse_transforms(op: str, tensors: tuple[Tensor | None, ...]) -> None:
    """vmap and forward-mode AD would be wrong without a word on some implementations: refused by name on all."""
    if torch.compiler.is_compiling():
        return
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise NotImplementedError(f"{op}: torch.func transforms (vmap, jvp, grad) are not supported; use autograd")
    if torch.autograd.forward_ad._current_level >= 0 and any(
        t is not None and torch.autograd.forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        raise NotImplementedError(f"{op}: forward-mode differentiation (jvp) is not supported; use reverse mode")


def wants_gradient(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether autograd has to see this call."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
