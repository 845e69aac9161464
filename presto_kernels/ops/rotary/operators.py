"""The operator boundary of ``qk_norm_rope``: one operator forward, one backward, per compiled implementation.

``presto_kernels::qk_norm_rope`` is implemented by the C++ library on CPU and CUDA tensors;
``presto_kernels::qk_norm_rope_triton`` by the Triton kernels.  Both have one schema and one fake.

    out = rotary(norm(x) * weight + bias)          for x = q ``[B, N, H, Dh]`` and x = k ``[B, Nk, Hkv, Dh]``

forward  -> (q', k'): contiguous, each in its own dtype.
backward -> (dq, dk, dq_weight, dk_weight, dq_bias, dk_bias, dq_alpha, dk_alpha), each with the shape and dtype of what
it belongs to; bit i of ``needs`` asks for output i.  q and k are needed where there is a norm or a weight, and may be
left out elsewhere: the statistics are computed anew from the row, which the backward reads anyway, instead of being
kept.  alphas are ``[1]``, and come with the norm "dyt" alone.
What is not there (k' without k, a gradient not asked for) is a tensor of shape [0]: a schema cannot return None.
"""

from __future__ import annotations

import torch
from torch import Tensor

from presto_kernels.ops.operators import define

NORMS = {None: 0, "layer": 1, "rms": 2, "l2": 3, "dyt": 4}

_TABLES = "Tensor? cos, Tensor? sin, Tensor? k_cos, Tensor? k_sin"
_AFFINE = "Tensor? q_weight, Tensor? k_weight, Tensor? q_bias, Tensor? k_bias, Tensor? q_alpha, Tensor? k_alpha"
_OPTIONS = "int norm, float eps, bool interleaved"
_FORWARD = f"(Tensor q, Tensor? k, {_TABLES}, {_AFFINE}, {_OPTIONS}) -> (Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor? grad_q, Tensor? grad_k, Tensor? q, Tensor? k, {_TABLES}, {_AFFINE}, {_OPTIONS}, int needs)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _forward_fake(
    q, k, cos, sin, k_cos, k_sin, q_weight, k_weight, q_bias, k_bias, q_alpha, k_alpha, norm, eps, interleaved
):  # fmt: skip
    return q.new_empty(q.shape), q.new_empty(0) if k is None else k.new_empty(k.shape)


def _backward_fake(
    grad_q, grad_k, q, k, cos, sin, k_cos, k_sin, q_weight, k_weight, q_bias, k_bias, q_alpha, k_alpha, norm, eps,
    interleaved, needs,
) -> tuple[Tensor, ...]:  # fmt: skip
    owners = (grad_q, grad_k, q_weight, k_weight, q_bias, k_bias, q_alpha, k_alpha)
    like = grad_k if grad_q is None else grad_q
    return tuple(
        owner.new_empty(owner.shape) if needs >> bit & 1 else like.new_empty(0) for bit, owner in enumerate(owners)
    )


define("qk_norm_rope", _FORWARD, _forward_fake)
define("qk_norm_rope_backward", _BACKWARD, _backward_fake)


def forward_operator(backend: str):
    """The forward operator that carries ``backend`` ("cpu", "cuda" or "triton")."""
    if backend == "triton":
        # Registers its two operators when it is first imported, so that nobody pays for Triton who does not use it.
        from presto_kernels.ops.rotary import triton_kernels  # noqa: F401

        return torch.ops.presto_kernels.qk_norm_rope_triton.default
    return torch.ops.presto_kernels.qk_norm_rope.default


def backward_operator(backend: str):
    """The backward operator that belongs to :func:`forward_operator`."""
    operators = torch.ops.presto_kernels
    if backend == "triton":
        return operators.qk_norm_rope_backward_triton.default
    return operators.qk_norm_rope_backward.default
