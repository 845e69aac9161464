"""The sampler family: ``edm_denoise`` and ``renoise``, what a few-step sampler does between two calls of the network.

See :mod:`presto_kernels.ops.sampler.reference` for the formulas in plain PyTorch, and for the layout of the noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from presto_kernels import backends
from presto_kernels.ops.checks import check_tensor, refuse_transforms, wants_gradient
from presto_kernels.ops.sampler import operators, reference

_IMPLEMENTATIONS = ("reference", "triton", "cuda", "cpu")


def edm_denoise(
    model_output: Tensor, x: Tensor, sigma: Tensor, *, sigma_data: float = 0.5, sigma_min: float = 0.0
) -> Tensor:
    """The denoiser's guess of the clean sample from the network's output F.

        D = c_skip x + c_out F,    c_skip = sd^2 / (r^2 + sd^2),    c_out = sd r / sqrt(sigma^2 + sd^2),
        r = sigma - sigma_min

    ``sigma_min = 0`` is EDM's preconditioning; above 0 it is that of consistency models, whose D is x at sigma_min.

    Args:
        model_output: F, of x's shape; may have another dtype (bfloat16 beside a float32 x).
        x: ``[B, ...]``, float32, bfloat16, float16, or float64 (reference only); any layout.
        sigma: ``[B]``, the noise level of each sample, any of the dtypes.
        sigma_data: standard deviation of the data.

    Returns:
        D, x's shape and dtype, contiguous, new.  Arithmetic is fp32 and rounded once; sigma_data and sigma_min are
        rounded to fp32 first, so that a sigma of ``torch.full((B,), sigma_min)`` is sigma_min.

    Differentiable once in every tensor; gradients are bitwise the same on every run.

    Raises:
        TypeError: an argument is no floating-point tensor.  ValueError: a shape, device or number does not fit.

    Source: Karras et al. 2022 (EDM), Table 1; Song et al. 2023 (Consistency Models), appendix C.
    """
    tensors, _ = _check_edm_denoise(model_output, x, sigma, sigma_data=sigma_data, sigma_min=sigma_min)
    backend = backends.select(_EDM_DENOISE, tensors)
    if backend == "reference":
        return reference.denoise(model_output, x, sigma, sigma_data, sigma_min).contiguous()
    if wants_gradient(tensors):
        settings = (backend, sigma_data, sigma_min, sigma.requires_grad)
        return _EdmDenoise.apply(settings, model_output, x, sigma)
    return operators.operator(backend, "edm_denoise")(model_output, x, sigma, sigma_data, sigma_min)


def renoise(
    x0: Tensor, sigma: float | Tensor, *, seed: int | Tensor, offset: int | Tensor, signal: float = 1.0
) -> Tensor:
    """Bring a clean sample to a noise level, in one pass and with noise that is never stored.

        x = signal x0 + sigma eps,    eps standard normal, a function of (seed, offset, sample, element) alone

    The same eps on every device and implementation, to within 4 ulp of its Box-Muller radius.

    Args:
        x0: ``[B, ...]``, float32, bfloat16, float16, or float64 (reference only); any layout; at most 2^34 elements a
            sample.
        sigma: a number, or ``[B]`` in any of the dtypes.  0 gives signal x0 exactly.
        seed: an int in [-2^63, 2^64), taken modulo 2^64 as ``torch.manual_seed`` does: one for the batch, each sample
            drawing its own noise from it.  Or int64 ``[B]`` on x0's device: one for each sample, whose noise then does
            not depend on its place in the batch.  The int s with B = 1 is ``[s]``.
        offset: which draw of a run, an int in [0, 2^32): 0 is the starting noise, the noise added after step i is
            i + 1.  Or int64 ``[B]`` on x0's device, of which the low 32 bits count.
        signal: what x0 is multiplied by.

    Returns:
        x, x0's shape and dtype, contiguous, new.  Arithmetic is fp32 and rounded once.

    A captured CUDA graph draws anew when the tensors it was given as seed or offset hold something else.
    Differentiable once in x0 and sigma; gradients are bitwise the same on every run.

    Raises:
        TypeError: an argument has the wrong type or dtype.  ValueError: a shape, device or number does not fit.

    Source: Salmon et al. 2011 (Philox4x32-10); Box & Muller 1958.
    """
    tensors, _ = _check_renoise(x0, sigma, seed=seed, offset=offset, signal=signal)
    backend = backends.select(_RENOISE, tensors)
    if not isinstance(seed, Tensor) and seed >= 2**63:
        seed -= 2**64  # the same 64 bits, as an operator takes them
    if backend == "reference":
        return reference.renoise(x0, sigma, seed, offset, signal).contiguous()
    draw = (*_one_or_each(seed, 0), *_one_or_each(offset, 0))
    sigmas, number = _one_or_each(sigma, 0.0)
    if wants_gradient(tensors):
        return _Renoise.apply((backend, number, signal), x0, sigmas, *draw)
    return operators.operator(backend, "renoise")(x0, sigmas, number, *draw, signal)


def _one_or_each(value, otherwise):
    """(tensor or None, number): the two arguments of an operator that one of ours becomes."""
    return (value, otherwise) if isinstance(value, Tensor) else (None, value)


class _EdmDenoise(torch.autograd.Function):
    """Forward and backward stay on one implementation, whatever ``use_backend`` says by the time of the backward."""

    @staticmethod
    def forward(ctx, settings, model_output, x, sigma):
        backend, sigma_data, sigma_min, of_sigma = settings
        ctx.settings = backend, sigma_data, sigma_min, operators.DTYPE_CODES[model_output.dtype]
        # Only the gradient of sigma reads them again.
        ctx.save_for_backward(sigma, *((model_output, x) if of_sigma else ()))
        return operators.operator(backend, "edm_denoise")(model_output, x, sigma, sigma_data, sigma_min)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        backend, *numbers = ctx.settings
        sigma, *read = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        model_output, x = read or (None, None)
        needs = sum(1 << bit for bit, want in enumerate(wanted) if want)
        backward = operators.operator(backend, "edm_denoise_backward")
        grads = backward(grad, model_output, x, sigma, *numbers, needs)
        return None, *(gradient if want else None for gradient, want in zip(grads, wanted, strict=True))


class _Renoise(torch.autograd.Function):
    """As :class:`_EdmDenoise`.  The noise is not kept: the backward draws it again."""

    @staticmethod
    def forward(ctx, settings, x0, sigmas, seeds, seed, offsets, offset):
        backend, sigma, signal = settings
        ctx.settings = backend, seed, offset, signal
        ctx.save_for_backward(sigmas, seeds, offsets)
        return operators.operator(backend, "renoise")(x0, sigmas, sigma, seeds, seed, offsets, offset, signal)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        backend, seed, offset, signal = ctx.settings
        sigmas, seeds, offsets = ctx.saved_tensors
        dx0 = dsigma = None
        if ctx.needs_input_grad[1]:
            dx0 = grad if signal == 1 else grad * signal
        if ctx.needs_input_grad[2]:
            dsigma = operators.operator(backend, "renoise_backward")(grad, sigmas, seeds, seed, offsets, offset)
        return None, dx0, dsigma, None, None, None, None


def _check_number(op: str, name: str, value: object, *, positive: bool = False) -> None:
    if isinstance(value, Tensor) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    if positive and not value > 0:
        raise ValueError(f"{op}: {name} must be positive, got {value}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{op}: {name} must be finite, got {value}")


def _check_each(op: str, name: str, t: Tensor, x: Tensor) -> None:
    """One value a sample."""
    if t.dim() != 1 or t.shape[0] != x.shape[0]:
        raise ValueError(f"{op}: {name} must be [{x.shape[0]}], a value for each sample, got {list(t.shape)}")


def _check_edm_denoise(model_output, x, sigma, *, sigma_data=0.5, sigma_min=0.0):
    op = "edm_denoise"
    check_tensor(op, "x", x)
    check_tensor(op, "model_output", model_output, x)
    check_tensor(op, "sigma", sigma, x)
    if x.dim() == 0:
        raise ValueError(f"{op}: x must be [B, ...], got a tensor without dimensions")
    if model_output.shape != x.shape:
        raise ValueError(f"{op}: model_output must have x's shape {list(x.shape)}, got {list(model_output.shape)}")
    _check_each(op, "sigma", sigma, x)
    _check_number(op, "sigma_data", sigma_data, positive=True)
    _check_number(op, "sigma_min", sigma_min)
    if sigma_min < 0:
        raise ValueError(f"{op}: sigma_min must not be negative, got {sigma_min}")
    refuse_transforms(op, (x, model_output, sigma))
    return (x, model_output, sigma), None


def _check_int(name: str, value: object, x0: Tensor, low: int, high: int, span: str) -> None:
    if isinstance(value, Tensor):
        if value.dtype != torch.int64:
            raise TypeError(f"renoise: {name} must be an int or an int64 tensor, got {value.dtype}")
        if value.device != x0.device:
            raise ValueError(f"renoise: {name} is on {value.device} and x0 on {x0.device}; put both on one device")
        _check_each("renoise", name, value, x0)
    elif isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"renoise: {name} must be an int or an int64 tensor, got {type(value).__name__}")
    elif not low <= value < high:
        raise ValueError(f"renoise: {name} must lie in {span}, got {value}")


def _check_renoise(x0, sigma, *, seed, offset, signal=1.0):
    check_tensor("renoise", "x0", x0)
    if x0.dim() == 0:
        raise ValueError("renoise: x0 must be [B, ...], got a tensor without dimensions")
    if x0.numel() > reference.MAX_SAMPLE * x0.shape[0] or x0.shape[0] > 2**32:
        raise ValueError(f"renoise: x0 must have at most 2^34 elements a sample and 2^32 samples, got {list(x0.shape)}")
    sigmas = None
    if isinstance(sigma, Tensor):
        check_tensor("renoise", "sigma", sigma, x0, "x0")
        _check_each("renoise", "sigma", sigma, x0)
        sigmas = sigma
    else:
        _check_number("renoise", "sigma", sigma)
    _check_number("renoise", "signal", signal)
    _check_int("seed", seed, x0, -(2**63), 2**64, "[-2^63, 2^64)")
    _check_int("offset", offset, x0, 0, 2**32, "[0, 2^32)")
    refuse_transforms("renoise", (x0, sigmas))
    return (x0, sigmas), None


def _limits(backend: str, tensors: backends.Tensors, options: None) -> str | None:
    if backend == "triton":
        from presto_kernels.ops.sampler import triton_kernels

        assert tensors[0] is not None
        return triton_kernels.limits(tensors[0])
    return None


def _bucket(tensors: backends.Tensors, options: None) -> tuple[str, int]:
    """By elements of x: one is bound by memory, the other by what a number of the noise costs."""
    assert tensors[0] is not None
    return "", tensors[0].numel()


_EDM_DENOISE = backends.Op("edm_denoise", _IMPLEMENTATIONS, _check_edm_denoise, _limits, _bucket)
_RENOISE = backends.Op("renoise", _IMPLEMENTATIONS, _check_renoise, _limits, _bucket)
for _op in (_EDM_DENOISE, _RENOISE):
    backends.register(_op)
