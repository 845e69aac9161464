"""The operator boundary of the AdaLN family: one operator forward, one backward, per compiled implementation.

``presto_kernels::seam`` is implemented by the C++ library on CPU and CUDA tensors; ``presto_kernels::seam_triton`` by
the Triton kernels.  Both have one schema and one fake, so ``torch.compile`` sees the same thing whichever runs.

    x'  = x + g(gate) * branch + residual2                         (branch given)
    h   = (norm(x') * weight + bias) * (1 + scale) + shift         (norm != NONE)

forward  -> (x', h, stats): ``[B, N, D]``, ``[B, N, D]``, fp32 ``[B, N, 2]`` = (mean, rstd) of each row of x'.
backward -> (dx, dbranch, dgate, dscale, dshift, dweight, dbias, dalpha, dresidual2), each with the shape and dtype of
what it belongs to.  Bit i of ``needs`` asks for the backward's output i.  What is not there (x' without a branch, h
without a norm, stats without a norm that has any, a gradient not asked for) is a tensor of shape [0]: an operator's
schema cannot return None.
"""

from __future__ import annotations

import torch
from torch import Tensor

from presto_kernels.ops.operators import define

NORMS = {None: 0, "layer": 1, "rms": 2, "dyt": 3}
GATE_FNS = {"identity": 0, "sigmoid_one_minus": 1}

_INPUTS = (
    "Tensor? branch, Tensor? gate, Tensor? scale, Tensor? shift, Tensor? weight, Tensor? bias, Tensor? alpha, "
    "Tensor? residual2"
)
_FORWARD = f"(Tensor x, {_INPUTS}, int norm, int gate_fn, float eps) -> (Tensor, Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor? grad_x, Tensor? grad_h, Tensor x, Tensor stats, {_INPUTS}, int norm, int gate_fn, int needs)"
    f" -> ({', '.join(['Tensor'] * 9)})"
)


def has_stats(norm: int) -> bool:
    """Whether a norm is of a row's statistics: mean and rstd."""
    return norm in (NORMS["layer"], NORMS["rms"])


def _seam_fake(x, branch, gate, scale, shift, weight, bias, alpha, residual2, norm, gate_fn, eps):
    nothing = x.new_empty(0)
    x_new = x.new_empty(x.shape) if branch is not None else nothing
    stats = (x.shape[0], x.shape[1], 2) if has_stats(norm) else (0,)
    return x_new, x.new_empty(x.shape if norm else (0,)), x.new_empty(stats, dtype=torch.float32)


def _seam_backward_fake(
    grad_x, grad_h, x, stats, branch, gate, scale, shift, weight, bias, alpha, residual2, norm, gate_fn, needs
) -> tuple[Tensor, ...]:
    owners = (x, branch, gate, scale, shift, weight, bias, alpha, residual2)
    return tuple(
        owner.new_empty(owner.shape) if needs >> bit & 1 else x.new_empty(0) for bit, owner in enumerate(owners)
    )


define("seam", _FORWARD, _seam_fake)
define("seam_backward", _BACKWARD, _seam_backward_fake)


def forward_operator(backend: str):
    """The forward operator that carries ``backend`` ("cpu", "cuda" or "triton")."""
    if backend == "triton":
        # Registers its two operators when it is first imported, so that nobody pays for Triton who does not use it.
        from presto_kernels.ops.modulation import triton_kernels  # noqa: F401

        return torch.ops.presto_kernels.seam_triton.default
    return torch.ops.presto_kernels.seam.default


def backward_operator(backend: str):
    """The backward operator that belongs to :func:`forward_operator`."""
    operators = torch.ops.presto_kernels
    return operators.seam_backward_triton.default if backend == "triton" else operators.seam_backward.default
