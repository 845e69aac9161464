"""The operator boundary of the activations: one operator forward, one backward, per op and compiled implementation.

``presto_kernels::glu`` and ``presto_kernels::snake`` are implemented by the C++ library on CPU and CUDA tensors, the
same names with ``_triton`` by the Triton kernels.  All have the same fakes, so ``torch.compile`` sees the same thing
whichever runs.

    glu    x [B, N, 2 D] -> y [B, N, D] = value * act(gate)                            act: ACTS
    snake  x [B, C, T], alpha [C], beta [C] -> y = x + sin(alpha x)^2 / (beta + 1e-9)

``glu_backward`` -> dx.  ``snake_backward`` -> (dx, dalpha, dbeta), each with the shape and dtype of what it belongs to;
bit i of ``needs`` asks for output i, and what is not asked for is a tensor of shape [0].
"""

from __future__ import annotations

from torch import Tensor

from presto_kernels._ops import ops
from presto_kernels.ops.operators import define

ACTS = {"silu": 0, "gelu": 1, "sinpi": 2}


def _glu_fake(x, act, gate_first):
    return x.new_empty((x.shape[0], x.shape[1], x.shape[2] // 2))


def _glu_backward_fake(grad, x, act, gate_first):
    return x.new_empty(x.shape)


def _snake_fake(x, alpha, beta):
    return x.new_empty(x.shape)


def _snake_backward_fake(grad, x, alpha, beta, needs) -> tuple[Tensor, ...]:
    return tuple(
        owner.new_empty(owner.shape) if needs >> bit & 1 else owner.new_empty(0)
        for bit, owner in enumerate((x, alpha, beta))
    )


define("glu", "(Tensor x, int act, bool gate_first) -> Tensor", _glu_fake)
define("glu_backward", "(Tensor grad, Tensor x, int act, bool gate_first) -> Tensor", _glu_backward_fake)
define("snake", "(Tensor x, Tensor alpha, Tensor beta) -> Tensor", _snake_fake)
define(
    "snake_backward",
    "(Tensor grad, Tensor x, Tensor alpha, Tensor beta, int needs) -> (Tensor, Tensor, Tensor)",
    _snake_backward_fake,
)


def forward_operator(op: str, backend: str):
    """The forward operator of ``op`` ("glu", "snake") that carries ``backend`` ("cpu", "cuda" or "triton")."""
    if backend == "triton":
        # Registers its operators when it is first imported, so that nobody pays for Triton who does not use it.
        from presto_kernels.ops.activation import triton_kernels  # noqa: F401

        return ops.glu_triton.default if op == "glu" else ops.snake_triton.default
    return ops.glu.default if op == "glu" else ops.snake.default


def backward_operator(op: str, backend: str):
    """The backward operator that belongs to :func:`forward_operator`."""
    if op == "glu":
        return ops.glu_backward_triton.default if backend == "triton" else ops.glu_backward.default
    return ops.snake_backward_triton.default if backend == "triton" else ops.snake_backward.default
