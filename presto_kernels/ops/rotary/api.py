"""``qk_norm_rope``: what stands between the query-key projection and attention, in one pass over the heads.

See :mod:`presto_kernels.ops.rotary.reference` for the formula in plain PyTorch.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from presto_kernels import backends
from presto_kernels.ops.checks import check_tensor, refuse_transforms, wants_gradient
from presto_kernels.ops.rotary import operators, reference

_Keys = TypeVar("_Keys", bound="Tensor | None")  # no keys in, none out


def qk_norm_rope(
    q: Tensor,
    k: _Keys,
    cos: Tensor | None,
    sin: Tensor | None,
    *,
    k_cos: Tensor | None = None,
    k_sin: Tensor | None = None,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
    q_alpha: Tensor | None = None,
    k_alpha: Tensor | None = None,
    norm: str | None = "rms",
    eps: float = 1e-6,
    interleaved: bool = False,
) -> tuple[Tensor, _Keys]:
    """Normalise each head of the queries and keys and turn it by its position.

        out = rotary(norm(x) * weight + bias)            for x = q and for x = k

    ``norm``, over each head's Dh elements: ``"rms"`` x / sqrt(mean(x^2) + eps), ``"layer"`` (x - mean) / sqrt(var +
    eps), the variance biased, ``"l2"`` x / max(|x|, eps), ``"dyt"`` tanh(alpha x), or None.  Rotary acts on the first
    R = 2 * cos.shape[-1] elements and turns each pair (a, b) to (a cos - b sin, b cos + a sin); the pairs are elements
    (i, i + R/2), or (2i, 2i + 1) with ``interleaved``.  The other Dh - R are left as they are.

    Args:
        q: ``[B, N, H, Dh]``, float32, bfloat16, float16, or float64 (reference only).  Any strides: a view of the
            fused projection's output (``qkv.view(B, N, 3, H, Dh)[:, :, 0]``) is read where it lies; only where
            neighbours within a head do not lie side by side is it copied first.
        k: ``[B, Nk, Hkv, Dh]`` as q, with a length, a number of heads, strides and a dtype of its own, or None.
        cos, sin: ``[N, R/2]`` float32, of q's positions, or both None (no rotary).  They are constants: one that
            requires grad is refused.
        k_cos, k_sin: ``[Nk, R/2]``, the same of k's positions; left out, k takes cos and sin, and then Nk must be N.
        q_weight, k_weight, q_bias, k_bias: ``[Dh]``, any of the dtypes, or None (1, 0).  ``weight`` multiplies as it
            is (not 1 + weight).
        q_alpha, k_alpha: ``[1]`` or ``[]``, any of the dtypes; with ``norm="dyt"``, which has no use for ``eps``, for
            each of q and k that is there, and with no other norm.

    Returns:
        (q, k): contiguous, new, each in its own dtype; k is None where it was.  All arithmetic is fp32 and rounded
        once: nothing is rounded between the norm and the rotary.

    Differentiable once in q, k, weights, biases and alphas; gradients are bitwise the same on every run.

    Raises:
        TypeError: an argument is no floating-point tensor.  ValueError: a shape, device or option does not fit.

    Source: rotary of Su et al. 2021 (RoFormer); norms of queries and keys as in Dehghani et al. 2023 (ViT-22B);
    "dyt" is the DynamicTanh of Zhu et al. 2025 (arXiv 2503.10622), as in Stable Audio 3's SAME decoders.
    """
    tensors, _ = _check(
        q, k, cos, sin, k_cos=k_cos, k_sin=k_sin, q_weight=q_weight, k_weight=k_weight, q_bias=q_bias, k_bias=k_bias,
        q_alpha=q_alpha, k_alpha=k_alpha, norm=norm, eps=eps, interleaved=interleaved,
    )  # fmt: skip
    backend = backends.select(_QK_NORM_ROPE, tensors)
    if backend == "reference":
        of_k = (cos, sin) if k_cos is None else (k_cos, k_sin)
        return (  # type: ignore[return-value]
            reference.norm_rope(q, cos, sin, q_weight, q_bias, q_alpha, norm, eps, interleaved),
            None if k is None else reference.norm_rope(k, *of_k, k_weight, k_bias, k_alpha, norm, eps, interleaved),
        )
    options = (operators.NORMS[norm], eps, bool(interleaved))
    tensors = (*tensors[:10], *(None if alpha is None else alpha.reshape(1) for alpha in tensors[10:]))
    if wants_gradient(tensors):
        q_out, k_out = _QKNormRope.apply(backend, options, *tensors)
    else:
        q_out, k_out = operators.forward_operator(backend)(*tensors, *options)
    return q_out, None if k is None else k_out  # type: ignore[return-value]


class _QKNormRope(torch.autograd.Function):
    """Forward and backward stay on one implementation, whatever ``use_backend`` says by the time of the backward."""

    @staticmethod
    def forward(
        ctx, backend, options, q, k, cos, sin, k_cos, k_sin, q_weight, k_weight, q_bias, k_bias, q_alpha, k_alpha
    ):
        affine = (q_weight, k_weight, q_bias, k_bias, q_alpha, k_alpha)
        q_out, k_out = operators.forward_operator(backend)(q, k, cos, sin, k_cos, k_sin, *affine, *options)
        ctx.set_materialize_grads(False)
        ctx.settings = backend, options
        # A rotation alone is undone without knowing what it turned.
        q_kept = q if options[0] or q_weight is not None else None
        k_kept = k if options[0] or k_weight is not None else None
        ctx.save_for_backward(q_kept, k_kept, cos, sin, k_cos, k_sin, *affine)
        ctx.has_k = k is not None
        if k is None:
            ctx.mark_non_differentiable(k_out)
        return q_out, k_out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_q, grad_k):
        backend, options = ctx.settings
        q, k, *constants = ctx.saved_tensors
        if not ctx.has_k:
            grad_k = None  # torch.compile fills in zeros
        need = ctx.needs_input_grad[2:]
        incoming = (grad_q, grad_k) * 4
        wanted = [grad is not None and needed for grad, needed in zip(incoming, (*need[:2], *need[6:]), strict=True)]
        if not any(wanted):
            return (None,) * 14
        needs = sum(1 << bit for bit, want in enumerate(wanted) if want)
        grads = operators.backward_operator(backend)(grad_q, grad_k, q, k, *constants, *options, needs)
        dq, dk, *daffine = (grad if want else None for grad, want in zip(grads, wanted, strict=True))
        return None, None, dq, dk, None, None, None, None, *daffine


_OP = "qk_norm_rope"


def _check_heads(name: str, x: Tensor) -> None:
    if x.dim() != 4 or x.shape[3] == 0:
        heads, tokens = ("H", "N") if name == "q" else ("Hkv", "Nk")
        raise ValueError(f"{_OP}: {name} must be [B, {tokens}, {heads}, Dh] with Dh > 0, got {list(x.shape)}")


def _check_table(name: str, t: Tensor, q: Tensor, tokens: int, half: int | None) -> None:
    """cos, sin or one of k's; ``half``: R/2 where another table has set it."""
    check_tensor(_OP, name, t, q, "q")
    if t.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{_OP}: {name} must be float32, got {t.dtype}")
    if t.requires_grad:
        raise ValueError(f"{_OP}: {name} requires grad, but is a constant here; pass {name}.detach()")
    fits = t.dim() == 2 and t.shape[0] == tokens and 0 < 2 * t.shape[1] <= q.shape[3]
    if not fits or (half is not None and t.shape[1] != half):
        width = f"R/2 with 2 <= R <= {q.shape[3]}" if half is None else half
        raise ValueError(f"{_OP}: {name} must be [{tokens}, {width}], got {list(t.shape)}")


def _check_alpha(name: str, alpha: Tensor | None, q: Tensor, *, wanted: bool, norm: str | None) -> None:
    if alpha is None:
        if wanted:
            raise ValueError(f"{_OP}: norm='dyt' needs {name}, a tensor [1] or []")
        return
    if not wanted:
        raise ValueError(f"{_OP}: {name} belongs to norm='dyt', but norm is {norm!r}")
    check_tensor(_OP, name, alpha, q, "q")
    if alpha.dim() > 1 or alpha.numel() != 1:
        raise ValueError(f"{_OP}: {name} must be [1] or [], got {list(alpha.shape)}")


def _check(
    q, k, cos, sin, *, k_cos=None, k_sin=None, q_weight=None, k_weight=None, q_bias=None, k_bias=None,
    q_alpha=None, k_alpha=None, norm="rms", eps=1e-6, interleaved=False,
):  # fmt: skip
    check_tensor(_OP, "q", q)
    _check_heads("q", q)
    if k is not None:
        check_tensor(_OP, "k", k, q, "q")
        _check_heads("k", k)
        if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
            raise ValueError(
                f"{_OP}: k must be [{q.shape[0]}, Nk, Hkv, {q.shape[3]}] beside q {list(q.shape)}, got {list(k.shape)}"
            )
    of_k = {"k_cos": k_cos, "k_sin": k_sin, "k_weight": k_weight, "k_bias": k_bias, "k_alpha": k_alpha}
    for name, t in of_k.items():
        if t is not None and k is None:
            raise ValueError(f"{_OP}: {name} is given but k is None")
    for one, other, a, b in (("cos", "sin", cos, sin), ("k_cos", "k_sin", k_cos, k_sin)):
        if (a is None) != (b is None):
            raise ValueError(f"{_OP}: {one} and {other} come together, or neither does")
    if k_cos is not None and cos is None:
        raise ValueError(f"{_OP}: k_cos is given but cos is None")
    if cos is not None:
        _check_table("cos", cos, q, q.shape[1], None)
        _check_table("sin", sin, q, q.shape[1], cos.shape[1])
        if k_cos is not None:
            _check_table("k_cos", k_cos, q, k.shape[1], cos.shape[1])
            _check_table("k_sin", k_sin, q, k.shape[1], cos.shape[1])
        elif k is not None and k.shape[1] != q.shape[1]:
            raise ValueError(f"{_OP}: k_cos and k_sin are needed where k's length {k.shape[1]} is not q's {q.shape[1]}")
    for name, t in {"q_weight": q_weight, "k_weight": k_weight, "q_bias": q_bias, "k_bias": k_bias}.items():
        if t is None:
            continue
        check_tensor(_OP, name, t, q, "q")
        if t.dim() != 1 or t.shape[0] != q.shape[3]:
            raise ValueError(f"{_OP}: {name} must be [{q.shape[3]}] beside q {list(q.shape)}, got {list(t.shape)}")
    if norm not in operators.NORMS:
        raise ValueError(f"{_OP}: norm must be 'rms', 'layer', 'l2', 'dyt' or None, got {norm!r}")
    for name, alpha, x in (("q_alpha", q_alpha, q), ("k_alpha", k_alpha, k)):
        _check_alpha(name, alpha, q, wanted=norm == "dyt" and x is not None, norm=norm)
    if not eps >= 0:
        raise ValueError(f"{_OP}: eps must be a number >= 0, got {eps!r}")
    tensors = (q, k, cos, sin, k_cos, k_sin, q_weight, k_weight, q_bias, k_bias, q_alpha, k_alpha)
    refuse_transforms(_OP, tensors)
    return tensors, None


def _limits(backend: str, tensors: backends.Tensors, options: None) -> str | None:
    if backend == "triton":
        from presto_kernels.ops.rotary import triton_kernels

        assert tensors[0] is not None
        return triton_kernels.limits(tensors[0].shape[3])
    return None


def _bucket(tensors: backends.Tensors, options: None) -> tuple[str, int]:
    """By elements of q and k: the op is bound by memory."""
    q, k = tensors[:2]
    assert q is not None
    return "", q.numel() + (0 if k is None else k.numel())


_QK_NORM_ROPE = backends.Op(_OP, ("reference", "triton", "cuda", "cpu"), _check, _limits, _bucket)
backends.register(_QK_NORM_ROPE)
