"""``attention``: softmax(scale q k^T) v with key lengths, sliding windows and grouped heads.

See :mod:`presto_kernels.ops.attention.reference` for the formulas in plain PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from presto_kernels import backends, tuned
from presto_kernels.ops.attention import operators
from presto_kernels.ops.checks import check_tensor, refuse_transforms, wants_gradient
from presto_kernels.ops.rotary.api import qk_norm_rope

_IMPLEMENTATIONS = ("reference", "triton", "cpu", "sdpa", "flash")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_lengths: Tensor | None = None,
    window: tuple[int, int] | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention over the keys that each query sees.

        out[b, i, h] = sum_j softmax_j(scale q[b, i, h] . k[b, j, g]) v[b, j, g],      g = h // (H / Hkv)

    Args:
        q: ``[B, Nq, H, Dh]``, float32, bfloat16, float16, or float64 (reference only); any strides.
        k, v: ``[B, Nk, Hkv, Dh]`` of q's dtype, H a multiple of Hkv; any strides (all three may be views of one fused
            projection).
        key_lengths: int32 or int64 ``[B]`` on q's device: sample b has keys 0 .. key_lengths[b] - 1; clamped to
            [0, Nk] on the device, which is never asked.  None: all Nk.
        window: (left, right): query i sees keys i - left .. i + right, both inclusive; -1 is unbounded.  Needs
            Nq = Nk.  (-1, 0) is causal.
        scale: of the scores; None: 1 / sqrt(Dh).

    Returns:
        ``[B, Nq, H, Dh]``, q's dtype, contiguous, new.  A row that sees no key is 0.  What a query does not see has no
        part in its result or in any gradient, NaN and infinity included; keys that nobody sees get gradients of 0.

    Differentiable once in q, k and v; gradients are bitwise the same on every run.

    Raises:
        TypeError: an argument is no tensor or of a dtype that does not fit.  ValueError: a shape, device or option does
        not fit.

    Source: Vaswani et al. 2017; in blocks as in FlashAttention (Dao et al. 2022), windows as in Beltagy et al. 2020.
    """
    return _run(*_check(q, k, v, key_lengths=key_lengths, window=window, scale=scale))


def _run(tensors, options) -> Tensor:
    """``attention`` of arguments that were checked."""
    (q, k, v, key_lengths), (left, right, scale) = tensors, options
    backend = backends.select(_ATTENTION, tensors, options)
    if backend == "sdpa":
        from presto_kernels.ops.attention import sdpa

        return sdpa.attention(q, k, v, scale)
    if backend == "flash":
        from presto_kernels.ops.attention import flash

        return flash.attention(q, k, v, key_lengths, left, right, scale)
    if wants_gradient(tensors):
        if torch.compiler.is_compiling():  # which takes no tensor twice, as when k is v
            k, v = k.view_as(k), v.view_as(v)
        return _Attention.apply((backend, left, right, scale), q, k, v, key_lengths)
    return operators.forward_operator(backend)(q, k, v, key_lengths, left, right, scale)[0]


def qk_norm_rope_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
    key_lengths: Tensor | None = None,
    window: tuple[int, int] | None = None,
    scale: float | None = None,
) -> Tensor:
    """``attention`` of ``qk_norm_rope(q, k, cos, sin, q_weight=..., k_weight=..., norm="rms")``.

    Arguments, result and errors as those two have them.  One kernel does both where measurements shipped with the
    package say that it is faster, no gradient is wanted and no implementation is forced; otherwise each op goes its own
    way.
    """
    tensors, options = _check(q, k, v, key_lengths=key_lengths, window=window, scale=scale)
    if _fused_is_faster(tensors, options, cos, sin, q_weight, k_weight):
        return operators.qk_norm_rope_operator()(q, k, v, cos, sin, q_weight, k_weight, eps, key_lengths, *options)
    q, k = qk_norm_rope(q, k, cos, sin, q_weight=q_weight, k_weight=k_weight, norm="rms", eps=eps)
    return _run((q, k, v, key_lengths), options)  # of the same shapes, dtypes and device: checked above


def _fused_is_faster(tensors: backends.Tensors, options, cos, sin, q_weight, k_weight) -> bool:
    """Whether the one kernel can take this call and was measured to be faster on this device."""
    q, k = tensors[:2]
    assert q is not None and k is not None
    if not q.is_cuda or not backends.TRITON_INSTALLED or backends._forced_for(_ATTENTION) is not None:
        return False
    if wants_gradient((*tensors, cos, sin, q_weight, k_weight)) or q.dtype == torch.float64:
        return False
    # Anything unusual is for qk_norm_rope to take or refuse.
    if any(t is not None and t.device != q.device for t in (cos, sin, q_weight, k_weight)):
        return False
    if any(w is not None and w.shape != q.shape[3:] for w in (q_weight, k_weight)):
        return False
    if (cos is None) != (sin is None):
        return False
    if cos is not None:
        if q.shape[1] != k.shape[1] or not 0 < 2 * cos.shape[-1] <= q.shape[3]:
            return False
        if any(t.dtype != torch.float32 or t.shape != (q.shape[1], cos.shape[-1]) for t in (cos, sin)):
            return False
    kind, size = _bucket(tensors, options)
    measured = tuned.lookup(
        "qk_norm_rope_attention", q.device, q.dtype, kind, None if torch.compiler.is_compiling() else size
    )
    return measured is not None and measured[0][0] == "fused" and _limits("triton", tensors, options) is None


class _Attention(torch.autograd.Function):
    """Forward and backward stay on one implementation, whatever ``use_backend`` says by the time of the backward."""

    @staticmethod
    def forward(ctx, settings, q, k, v, key_lengths):
        backend, *options = settings
        out, lse = operators.forward_operator(backend)(q, k, v, key_lengths, *options)
        ctx.settings = settings
        ctx.save_for_backward(q, k, v, out, lse, key_lengths)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        backend, *options = ctx.settings
        grads = operators.backward_operator(backend)(grad_out, *ctx.saved_tensors, *options)
        wanted = ctx.needs_input_grad[1:4]
        return None, *(grad if want else None for grad, want in zip(grads, wanted, strict=True)), None


def _check(q, k, v, *, key_lengths=None, window=None, scale=None):
    op = "attention"
    for name, t in (("q", q), ("k", k), ("v", v)):
        check_tensor(op, name, t, q, "q")
        if t.dim() != 4:
            raise ValueError(f"{op}: {name} must be [B, N, heads, Dh], got {list(t.shape)}")
        if t.dtype != q.dtype:
            raise TypeError(f"{op}: {name} must have q's dtype {q.dtype}, got {t.dtype}")
    batch, queries, heads, dim = q.shape
    if heads == 0 or dim == 0:
        raise ValueError(f"{op}: q must have at least one head and Dh > 0, got {list(q.shape)}")
    if k.shape[0] != batch or k.shape[3] != dim:
        raise ValueError(f"{op}: k must be [{batch}, Nk, Hkv, {dim}] beside q {list(q.shape)}, got {list(k.shape)}")
    if v.shape != k.shape:
        raise ValueError(f"{op}: v must have k's shape {list(k.shape)}, got {list(v.shape)}")
    if k.shape[2] == 0 or heads % k.shape[2]:
        raise ValueError(f"{op}: q's {heads} heads must be a multiple of k's, got {k.shape[2]}")
    if key_lengths is not None:
        _check_lengths(op, key_lengths, q)
    left, right = _check_window(op, window, queries, k.shape[1])
    if scale is None:
        scale = dim**-0.5
    elif isinstance(scale, bool) or not isinstance(scale, int | float | torch.SymFloat | torch.SymInt):
        raise TypeError(f"{op}: scale must be a number or None, got {type(scale).__name__}")
    refuse_transforms(op, (q, k, v))
    return (q, k, v, key_lengths), (left, right, float(scale))


def _check_lengths(op: str, key_lengths: object, q: Tensor) -> None:
    if not isinstance(key_lengths, Tensor) or key_lengths.dtype not in (torch.int32, torch.int64):
        what = key_lengths.dtype if isinstance(key_lengths, Tensor) else type(key_lengths).__name__
        raise TypeError(f"{op}: key_lengths must be an int32 or int64 tensor, got {what}")
    if key_lengths.dim() != 1 or key_lengths.shape[0] != q.shape[0]:
        raise ValueError(f"{op}: key_lengths must be [{q.shape[0]}], got {list(key_lengths.shape)}")
    if key_lengths.device != q.device:
        raise ValueError(f"{op}: key_lengths is on {key_lengths.device} and q on {q.device}; put both on one device")


def _check_window(op: str, window: object, queries: int, keys: int) -> tuple[int, int]:
    if window is None:
        return -1, -1
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise ValueError(f"{op}: window must be (left, right) or None, got {window!r}")
    left, right = window
    for side in (left, right):
        if isinstance(side, bool) or not isinstance(side, int | torch.SymInt) or side < -1:
            raise ValueError(f"{op}: window must be two integers >= -1 (-1: unbounded), got {window!r}")
    if left == -1 and right == -1:
        return -1, -1
    if queries != keys:
        raise ValueError(f"{op}: a window needs as many queries as keys, got Nq = {queries} and Nk = {keys}")
    if not torch.compiler.is_compiling():  # a graph serves every length, so none may choose
        # What reaches past the ends hides nothing, and there is more that can do without.
        left, right = (-1 if side >= keys - 1 else side for side in (left, right))
    return left, right


def _limits(backend: str, tensors: backends.Tensors, options: tuple[int, int, float]) -> str | None:
    q, k, v, key_lengths = tensors
    assert q is not None and k is not None and v is not None
    if backend == "triton":
        from presto_kernels.ops.attention import triton_kernels

        return triton_kernels.limits(q, k, v, key_lengths, *options)
    if backend == "sdpa":
        from presto_kernels.ops.attention import sdpa

        return sdpa.limits(q, k, v, key_lengths, *options)
    if backend == "flash":
        from presto_kernels.ops.attention import flash

        return flash.limits(q, k, v, key_lengths, *options)
    return None


def _bucket(tensors: backends.Tensors, options: tuple[int, int, float]) -> tuple[str, int]:
    """By head dim and mask, and by the pairs of query and key that a window leaves."""
    q, k, _, key_lengths = tensors
    assert q is not None and k is not None
    batch, queries, heads, dim = q.shape
    keys, (left, right, _) = k.shape[1], options
    kind = f"dh{dim}"
    if queries != keys:
        kind += " cross"
    if key_lengths is not None:
        kind += " lengths"
    if left >= 0 or right >= 0:
        kind += " window"
    if left >= 0 and right >= 0:
        keys = left + right + 1
    elif left >= 0 or right >= 0:
        keys = (keys + 1) // 2
    return kind, batch * heads * queries * keys


_ATTENTION = backends.Op(
    "attention",
    _IMPLEMENTATIONS,
    _check,
    _limits,
    _bucket,
    order=(("cpu", ("cpu", "sdpa", "reference")), ("cuda", ("flash", "sdpa", "triton", "reference"))),
)
backends.register(_ATTENTION)
