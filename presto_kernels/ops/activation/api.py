"""The activations: ``swiglu``, ``geglu``, ``singlu`` and ``snake``.

See :mod:`presto_kernels.ops.activation.reference` for the formulas in plain PyTorch.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from presto_kernels import backends
from presto_kernels.ops.activation import operators, reference
from presto_kernels.ops.checks import check_tensor, refuse_transforms, wants_gradient

_IMPLEMENTATIONS = ("reference", "triton", "cuda", "cpu")


def swiglu(x: Tensor, *, gate_first: bool = False) -> Tensor:
    """Gate one half of the last axis with the SiLU of the other.

        y = value * gate * sigmoid(gate)

    Args:
        x: ``[..., 2 D]``, float32, bfloat16, float16, or float64 (reference only); any layout.
        gate_first: ``x = (gate, value)`` as in Llama; else ``(value, gate)`` as in diffusers and stable-audio-tools.

    Returns:
        y ``[..., D]``, x's dtype, contiguous, new.  Arithmetic is fp32 and rounded once.

    Differentiable once; gradients are bitwise the same on every run.

    Raises:
        TypeError: x is no floating-point tensor, or gate_first no bool.  ValueError: x's last axis is odd or empty.

    Source: Shazeer 2020, "GLU Variants Improve Transformer" (arXiv 2002.05202).
    """
    (x,), _ = _check_glu("swiglu", x, gate_first=gate_first)
    return _glu(_SWIGLU, x, "silu", gate_first)


def geglu(x: Tensor, *, gate_first: bool = False) -> Tensor:
    """Gate one half of the last axis with the GELU of the other.

        y = value * gate * (1 + erf(gate / sqrt(2))) / 2            the exact GELU, not the tanh approximation

    Arguments, result and errors as in :func:`swiglu`.
    """
    (x,), _ = _check_glu("geglu", x, gate_first=gate_first)
    return _glu(_GEGLU, x, "gelu", gate_first)


def singlu(x: Tensor, *, gate_first: bool = False) -> Tensor:
    """Gate one half of the last axis with a sine of the other.

        y = value * sin(pi gate)

    The sine is that of the gate as it is, whatever its size: a whole gate gives exactly 0.

    Arguments, result and errors as in :func:`swiglu`.

    Source: the sinusoidal feed-forward of Stable Audio 3's SAME decoders.
    """
    (x,), _ = _check_glu("singlu", x, gate_first=gate_first)
    return _glu(_SINGLU, x, "sinpi", gate_first)


def snake(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """A periodic activation with a frequency and an amplitude for each channel.

        y = x + sin(alpha x)^2 / (beta + 1e-9)

    Args:
        x: ``[B, C, T]``, float32, bfloat16, float16, or float64 (reference only); any layout.
        alpha, beta: ``[C]``, any strides, any of the dtypes (fp32 beside a bf16 x, say).  Themselves, not their
            logarithms: where a checkpoint holds logarithms, pass ``alpha.exp()``.

    Returns:
        y ``[B, C, T]``, x's dtype, contiguous, new.  Arithmetic is fp32 and rounded once.

    Differentiable once in every tensor; gradients are bitwise the same on every run.

    Raises:
        TypeError: an argument is no floating-point tensor.  ValueError: a shape or device does not fit.

    Source: Ziyin et al. 2020 (arXiv 2006.08195); beta as in BigVGAN (Lee et al. 2023, arXiv 2206.04658).
    """
    tensors, _ = _check_snake(x, alpha, beta)
    backend = backends.select(_SNAKE, tensors)
    if backend == "reference":
        return reference.snake(x, alpha, beta).contiguous()
    if wants_gradient(tensors):
        return _Snake.apply(backend, x, alpha, beta)
    return operators.forward_operator("snake", backend)(x, alpha, beta)


def _glu(op: backends.Op, x: Tensor, act: str, gate_first: bool) -> Tensor:
    backend = backends.select(op, (x,))
    if backend == "reference":
        return reference.glu(x, act, gate_first).contiguous()
    # The operators take rows on two axes; other numbers of axes are views of them, or a copy where there is none.
    axes = x.dim()
    rows = x if axes == 3 else x.flatten(0, -3) if axes > 3 else x[None] if axes == 2 else x[None, None]
    settings = operators.ACTS[act], gate_first
    if wants_gradient((x,)):
        y = _Glu.apply(backend, settings, rows)
    else:
        y = operators.forward_operator("glu", backend)(rows, *settings)
    return y if axes == 3 else y.view(*x.shape[:-1], x.shape[-1] // 2)


class _Glu(torch.autograd.Function):
    """Forward and backward stay on one implementation, whatever ``use_backend`` says by the time of the backward."""

    @staticmethod
    def forward(ctx, backend, settings, x):
        ctx.save_for_backward(x)
        ctx.settings = backend, settings
        return operators.forward_operator("glu", backend)(x, *settings)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        backend, settings = ctx.settings
        return None, None, operators.backward_operator("glu", backend)(grad, *ctx.saved_tensors, *settings)


class _Snake(torch.autograd.Function):
    """As :class:`_Glu`."""

    @staticmethod
    def forward(ctx, backend, x, alpha, beta):
        ctx.save_for_backward(x, alpha, beta)
        ctx.backend = backend
        return operators.forward_operator("snake", backend)(x, alpha, beta)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        wanted = ctx.needs_input_grad[1:]
        needs = sum(1 << bit for bit, want in enumerate(wanted) if want)
        grads = operators.backward_operator("snake", ctx.backend)(grad, *ctx.saved_tensors, needs)
        return None, *(gradient if want else None for gradient, want in zip(grads, wanted, strict=True))


def _check_glu(op: str, x: Tensor, *, gate_first: bool = False) -> tuple[tuple[Tensor], None]:
    check_tensor(op, "x", x)
    if x.dim() == 0 or x.shape[-1] == 0 or x.shape[-1] % 2:
        raise ValueError(f"{op}: x must be [..., 2 D] with D > 0, got {list(x.shape)}")
    if not isinstance(gate_first, bool):
        raise TypeError(f"{op}: gate_first must be a bool, got {type(gate_first).__name__}")
    refuse_transforms(op, (x,))
    return (x,), None


def _check_snake(x: Tensor, alpha: Tensor, beta: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], None]:
    check_tensor("snake", "x", x)
    if x.dim() != 3:
        raise ValueError(f"snake: x must be [B, C, T], got {list(x.shape)}")
    for name, t in (("alpha", alpha), ("beta", beta)):
        check_tensor("snake", name, t, x)
        if t.dim() != 1 or t.shape[0] != x.shape[1]:
            raise ValueError(f"snake: {name} must be [{x.shape[1]}] beside x {list(x.shape)}, got {list(t.shape)}")
    refuse_transforms("snake", (x, alpha, beta))
    return (x, alpha, beta), None


def _glu_limits(backend: str, tensors: backends.Tensors, options: None) -> str | None:
    if backend == "triton":
        from presto_kernels.ops.activation import triton_kernels

        assert tensors[0] is not None
        width = tensors[0].shape[-1]
        return triton_kernels.glu_limits(tensors[0].numel() // width, width // 2)
    return None


def _snake_limits(backend: str, tensors: backends.Tensors, options: None) -> str | None:
    if backend == "triton":
        from presto_kernels.ops.activation import triton_kernels

        assert tensors[0] is not None
        batch, channels, length = tensors[0].shape
        return triton_kernels.snake_limits(batch * channels, length)
    return None


def _bucket(tensors: backends.Tensors, options: None) -> tuple[str, int]:
    """By elements of x: the family is bound by memory."""
    assert tensors[0] is not None
    return "", tensors[0].numel()


_SWIGLU, _GEGLU, _SINGLU = (
    backends.Op(name, _IMPLEMENTATIONS, functools.partial(_check_glu, name), _glu_limits, _bucket)
    for name in ("swiglu", "geglu", "singlu")
)
_SNAKE = backends.Op("snake", _IMPLEMENTATIONS, _check_snake, _snake_limits, _bucket)
for _op in (_SWIGLU, _GEGLU, _SINGLU, _SNAKE):
    backends.register(_op)
