"""The operators behind attention, as PyTorch sees them: schemas, fakes, and which of them runs.

    attention                    (q, k, v, key_lengths, left, right, scale) -> (out, lse)
    attention_backward           (grad_out, q, k, v, out, lse, key_lengths, left, right, scale) -> (dq, dk, dv)
    attention_qk_norm_rope       (q, k, v, cos, sin, q_weight, k_weight, eps, key_lengths, left, right, scale) -> out:
                                 the forward of rms-normed and rotated q and k; inference only, Triton only

q, out ``[B, Nq, H, Dh]``, k and v ``[B, Nk, Hkv, Dh]``, lse fp32 ``[B, H, Nq]``: ln sum exp(scale q.k) over the keys
that a query sees, -inf where it sees none.  ``left`` and ``right``: the window, -1 where it is unbounded.
"""

from __future__ import annotations

from typing import Any

import torch

from presto_kernels._ops import add_op_namespace_prefix, ops
from presto_kernels.ops.attention import reference
from presto_kernels.ops.operators import define

_MASK = "Tensor? key_lengths, int left, int right, float scale"
_FORWARD = f"(Tensor q, Tensor k, Tensor v, {_MASK}) -> (Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_MASK}) -> (Tensor, Tensor, Tensor)"
)


def _attention_fake(q, k, v, key_lengths, left, right, scale):
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=wide)


def _attention_backward_fake(grad_out, q, k, v, out, lse, key_lengths, left, right, scale):
    return tuple(t.new_empty(t.shape) for t in (q, k, v))


def _attention_qk_norm_rope_fake(q, k, v, cos, sin, q_weight, k_weight, eps, key_lengths, left, right, scale):
    return q.new_empty(q.shape)


# The reference is an operator too: its blocks under a window are counted by the length, which a compiled graph must not
# depend on.
define("attention_reference", _FORWARD, _attention_fake, triton=False)
define("attention_backward_reference", _BACKWARD, _attention_backward_fake, triton=False)
for _name, _function in (
    ("attention_reference", reference.forward),
    ("attention_backward_reference", reference.backward),
):
    torch.library.impl(add_op_namespace_prefix(_name), "CompositeExplicitAutograd", _function)

define("attention", _FORWARD, _attention_fake)
define("attention_backward", _BACKWARD, _attention_backward_fake)
define(
    "attention_qk_norm_rope_triton",
    "(Tensor q, Tensor k, Tensor v, Tensor? cos, Tensor? sin, Tensor? q_weight, Tensor? k_weight, float eps,"
    f" {_MASK}) -> Tensor",
    _attention_qk_norm_rope_fake,
    triton=False,
)


def forward_operator(backend: str) -> Any:
    """What computes (out, lse) on ``backend`` ("reference", "cpu" or "triton")."""
    if backend == "reference":
        return ops.attention_reference.default
    if backend == "triton":
        # Registers its operators when it is first imported, so that nobody pays for Triton who does not use it.
        from presto_kernels.ops.attention import triton_kernels  # noqa: F401

        return ops.attention_triton.default
    return ops.attention.default


def backward_operator(backend: str) -> Any:
    """What computes (dq, dk, dv); belongs to :func:`forward_operator`."""
    if backend == "reference":
        return ops.attention_backward_reference.default
    return ops.attention_backward_triton.default if backend == "triton" else ops.attention_backward.default


def qk_norm_rope_operator() -> Any:
    """Attention of rms-normed and rotated q and k in one kernel."""
    from presto_kernels.ops.attention import triton_kernels  # noqa: F401

    return ops.attention_qk_norm_rope_triton.default
