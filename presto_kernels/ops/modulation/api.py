"""The AdaLN family: ``adaln_modulate``, ``gated_residual``, ``gated_residual_adaln``.

Every DiT block is a chain of branches on a residual stream; between two branches stands one *seam*, and these three ops
are its parts.  See :mod:`presto_kernels.ops.modulation.reference` for the formulas in plain PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from presto_kernels import backends
from presto_kernels.ops.checks import check_tensor, refuse_transforms, wants_gradient
from presto_kernels.ops.modulation import operators, reference

_IMPLEMENTATIONS = ("reference", "triton", "cuda", "cpu")


def adaln_modulate(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
    norm: str = "layer",
    eps: float = 1e-6,
) -> Tensor:
    """Normalise each row and modulate it.

        h = (norm(x) * weight + bias) * (1 + scale) + shift

    ``norm="layer"``: (x - mean) / sqrt(var + eps), the variance biased; ``"rms"``: x / sqrt(mean(x^2) + eps);
    ``"dyt"``, DynamicTanh: tanh(alpha * x), which needs no statistics and no eps.

    Args:
        x: ``[B, N, D]``, float32, bfloat16, float16, or float64 (reference only); any layout.
        scale, shift: each ``[D]``, ``[B|1, D]`` (a row per sample) or ``[B|1, 1|N, D]``, any strides, any of the
            dtypes, or None (0).
        weight, bias: the norm's own, shared by the tokens: ``[D]``, ``[B|1, D]`` or ``[B|1, 1, D]``, or None (1, 0).
            ``weight`` multiplies as it is (not 1 + weight).
        alpha: ``[1]`` or ``[]``, any of the dtypes: needed with ``norm="dyt"``, refused with another.

    Returns:
        h ``[B, N, D]``, x's dtype, contiguous, new.  Statistics and products are fp32 and rounded once.

    Differentiable once in every tensor; gradients are bitwise the same on every run.

    Raises:
        TypeError: an argument is no floating-point tensor.  ValueError: a shape, device or option does not fit.

    Source: AdaLN of Peebles & Xie 2023 (DiT), section 3; ``dyt``: Zhu et al. 2025, Transformers without Normalization.
    """
    tensors, _ = _check_adaln_modulate(x, scale, shift, weight=weight, bias=bias, alpha=alpha, norm=norm, eps=eps)
    backend = backends.select(_ADALN_MODULATE, tensors)
    if backend == "reference":
        return reference.modulate(x, scale, shift, weight, bias, norm, eps, alpha).contiguous()
    return _seam(backend, norm, "identity", eps, x, None, None, scale, shift, weight, bias, alpha, None)[1]


def gated_residual(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    *,
    gate_fn: str = "identity",
    residual2: Tensor | None = None,
) -> Tensor:
    """Add a gated branch, and what else there is to add, to the residual stream.

        x' = x + g(gate) * branch + residual2

    g(gate) = gate, or sigmoid(1 - gate) for ``gate_fn="sigmoid_one_minus"``.

    Args:
        x, branch: ``[B, N, D]``, any layout; branch may have another dtype than x.
        gate: ``[D]``, ``[B|1, D]`` or ``[B|1, 1|N, D]``, any strides, or None (the branch is added as it is).
        residual2: of the shapes of a gate, or None (0).

    Returns:
        x' ``[B, N, D]``, x's dtype, contiguous, new.  The sum is fp32 and rounded once.

    Differentiable once in every tensor; gradients are bitwise the same on every run.

    Raises:
        TypeError: an argument is no floating-point tensor.  ValueError: a shape, device or option does not fit.

    Source: AdaLN-Zero of Peebles & Xie 2023 (DiT); ``sigmoid_one_minus`` as in Stable Audio 3.
    """
    tensors, _ = _check_gated_residual(x, branch, gate, gate_fn=gate_fn, residual2=residual2)
    backend = backends.select(_GATED_RESIDUAL, tensors)
    if backend == "reference":
        return reference.add_gated(x, branch, gate, gate_fn, residual2).contiguous()
    return _seam(backend, None, gate_fn, 0.0, x, branch, gate, None, None, None, None, None, residual2)[0]


def gated_residual_adaln(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
    norm: str = "layer",
    eps: float = 1e-6,
    gate_fn: str = "identity",
    residual2: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The seam between two branches: close one, open the next, in one pass over the row.

        x' = x + g(gate) * branch + residual2
        h  = (norm(x') * weight + bias) * (1 + scale) + shift          norm taken of x' as stored

    Arguments, dtypes and errors as in :func:`gated_residual` and :func:`adaln_modulate`, of which it is the sum:
    ``h`` is bitwise ``adaln_modulate(x', ...)`` on the same implementation.

    Returns:
        (x', h), both ``[B, N, D]``, x's dtype, contiguous, new.
    """
    tensors, _ = _check_gated_residual_adaln(
        x, branch, gate, scale, shift,
        weight=weight, bias=bias, alpha=alpha, norm=norm, eps=eps, gate_fn=gate_fn, residual2=residual2,
    )  # fmt: skip
    backend = backends.select(_GATED_RESIDUAL_ADALN, tensors)
    if backend == "reference":
        x_new = reference.add_gated(x, branch, gate, gate_fn, residual2).contiguous()
        return x_new, reference.modulate(x_new, scale, shift, weight, bias, norm, eps, alpha)
    return _seam(backend, norm, gate_fn, eps, x, branch, gate, scale, shift, weight, bias, alpha, residual2)


def _seam(
    backend, norm, gate_fn, eps, x, branch, gate, scale, shift, weight, bias, alpha, residual2
) -> tuple[Tensor, Tensor]:
    """(x', h) on a compiled implementation; whichever the op does not have is an empty tensor."""
    gate, scale, shift, residual2 = (_per_sample(t, x) for t in (gate, scale, shift, residual2))
    settings = (backend, operators.NORMS[norm], operators.GATE_FNS[gate_fn], eps)
    tensors = (x, branch, gate, scale, shift, weight, bias, alpha, residual2)
    if wants_gradient(tensors):
        return _Seam.apply(settings, *tensors)
    return operators.forward_operator(backend)(*tensors, *settings[1:])[:2]


def _per_sample(modulation: Tensor | None, x: Tensor) -> Tensor | None:
    """[1, N, D] -> [B, N, D] without a copy: kernels write gradients by token only where no sample shares them."""
    if modulation is None or modulation.dim() < 3 or modulation.shape[1] == 1:
        return modulation
    return modulation.expand(x.shape[0], -1, -1)


class _Seam(torch.autograd.Function):
    """Forward and backward stay on one implementation, whatever ``use_backend`` says by the time of the backward."""

    @staticmethod
    def forward(ctx, settings, x, branch, gate, scale, shift, weight, bias, alpha, residual2):
        backend, norm, gate_fn, eps = settings
        x_new, h, stats = operators.forward_operator(backend)(
            x, branch, gate, scale, shift, weight, bias, alpha, residual2, norm, gate_fn, eps
        )
        ctx.set_materialize_grads(False)
        # A residual2 as large as x is not kept: its gradient is dx.
        dresidual2_is_dx = residual2 is not None and residual2.shape == x.shape and residual2.dtype == x.dtype
        residual2 = None if dresidual2_is_dx else residual2
        ctx.settings = backend, norm, gate_fn, dresidual2_is_dx and ctx.needs_input_grad[9]
        x = x if branch is None else x_new
        ctx.save_for_backward(x, stats, branch, gate, scale, shift, weight, bias, alpha, residual2)
        ctx.mark_non_differentiable(*(t for t, there in ((x_new, branch is not None), (h, norm)) if not there))
        return x_new, h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_x, grad_h):
        backend, norm, gate_fn, dresidual2_is_dx = ctx.settings
        x, stats, branch, gate, scale, shift, weight, bias, alpha, residual2 = ctx.saved_tensors
        # What the op does not have gets no gradient, though torch.compile fills in zeros.
        grad_x = grad_x if branch is not None else None
        grad_h = grad_h if norm else None
        if grad_h is None:
            norm, scale, shift, weight, bias, alpha = 0, None, None, None, None, None
            if grad_x is None:
                return (None,) * 10
        owners = (x, branch, gate, scale, shift, weight, bias, alpha, residual2)
        wanted = [t is not None and need for t, need in zip(owners, ctx.needs_input_grad[1:], strict=True)]
        # What is there already is not asked for: without a norm dx is grad_x, without a gate dbranch is dx.
        dbranch_is_dx = wanted[1] and gate is None and branch.dtype == x.dtype
        dx_wanted = wanted[0] or dbranch_is_dx or dresidual2_is_dx
        asked = [bool(norm) and dx_wanted, wanted[1] and not dbranch_is_dx, *wanted[2:]]
        grads = [None] * 9
        if any(asked):
            needs = sum(1 << bit for bit, asked_for in enumerate(asked) if asked_for)
            grads = list(
                operators.backward_operator(backend)(grad_x, grad_h, x, stats, *owners[1:], norm, gate_fn, needs)
            )
        if not norm:
            grads[0] = grad_x
        if dbranch_is_dx:
            grads[1] = grads[0]
        if dresidual2_is_dx:
            grads[8], wanted[8] = grads[0], True
        return None, *(grad if want else None for grad, want in zip(grads, wanted, strict=True))


def _is_modulation(t: Tensor, b: int, n: int, d: int) -> bool:
    if t.dim() == 1:
        return t.shape[0] == d
    if t.dim() == 2:
        return t.shape[1] == d and (t.shape[0] == 1 or t.shape[0] == b)
    return (
        t.dim() == 3
        and t.shape[2] == d
        and (t.shape[0] == 1 or t.shape[0] == b)
        and (t.shape[1] == 1 or t.shape[1] == n)
    )


def _check_alpha(op: str, x, alpha, norm) -> None:
    if norm != "dyt":
        if alpha is not None:
            raise ValueError(f"{op}: alpha belongs to norm='dyt' and norm is {norm!r}; leave it out")
        return
    if alpha is None:
        raise ValueError(f"{op}: norm='dyt' needs alpha, a tensor [1] or []")
    check_tensor(op, "alpha", alpha, x)
    if alpha.dim() > 1 or alpha.numel() != 1:
        raise ValueError(f"{op}: alpha must be [1] or [], got {list(alpha.shape)}")


def _check(op: str, x, branch, modulations: dict[str, Tensor | None], norm, eps, gate_fn, alpha=None) -> None:
    """One walk over the arguments of any op of the family."""
    check_tensor(op, "x", x)
    if x.dim() != 3 or x.shape[2] == 0:
        raise ValueError(f"{op}: x must be [B, N, D] with D > 0, got {list(x.shape)}")
    if branch is not None:
        check_tensor(op, "branch", branch, x)
        if branch.shape != x.shape:
            raise ValueError(f"{op}: branch must have x's shape {list(x.shape)}, got {list(branch.shape)}")
    for name, t in modulations.items():
        if t is None:
            continue
        check_tensor(op, name, t, x)
        b, n, d = x.shape
        n = 1 if name in ("weight", "bias") else n
        if not _is_modulation(t, b, n, d):
            raise ValueError(
                f"{op}: {name} must be [{d}], [{b} or 1, {d}] or [{b} or 1, {'1' if n == 1 else f'{n} or 1'}, {d}]"
                f" beside x {list(x.shape)}, got {list(t.shape)}"
            )
    if norm not in operators.NORMS or (norm is None and op != "gated_residual"):
        raise ValueError(f"{op}: norm must be 'layer', 'rms' or 'dyt', got {norm!r}")
    _check_alpha(op, x, alpha, norm)
    if gate_fn not in operators.GATE_FNS:
        raise ValueError(f"{op}: gate_fn must be 'identity' or 'sigmoid_one_minus', got {gate_fn!r}")
    if not eps >= 0:
        raise ValueError(f"{op}: eps must be a number >= 0, got {eps!r}")
    refuse_transforms(op, (x, branch, *modulations.values(), alpha))


def _check_adaln_modulate(x, scale, shift, *, weight=None, bias=None, alpha=None, norm="layer", eps=1e-6):
    modulations = {"scale": scale, "shift": shift, "weight": weight, "bias": bias}
    _check("adaln_modulate", x, None, modulations, norm, eps, "identity", alpha)
    return (x, scale, shift, weight, bias, alpha), None


def _check_gated_residual(x, branch, gate, *, gate_fn="identity", residual2=None):
    check_tensor("gated_residual", "branch", branch)
    _check("gated_residual", x, branch, {"gate": gate, "residual2": residual2}, None, 0.0, gate_fn)
    return (x, branch, gate, residual2), None


def _check_gated_residual_adaln(
    x, branch, gate, scale, shift, *,
    weight=None, bias=None, alpha=None, norm="layer", eps=1e-6, gate_fn="identity", residual2=None,
):  # fmt: skip
    check_tensor("gated_residual_adaln", "branch", branch)
    modulations = {"gate": gate, "residual2": residual2, "scale": scale, "shift": shift, "weight": weight, "bias": bias}
    _check("gated_residual_adaln", x, branch, modulations, norm, eps, gate_fn, alpha)
    return (x, branch, gate, scale, shift, weight, bias, alpha, residual2), None


def _limits(backend: str, tensors: backends.Tensors, options: None) -> str | None:
    if backend == "triton":
        from presto_kernels.ops.modulation import triton_kernels

        assert tensors[0] is not None
        return triton_kernels.limits(tensors[0].shape[2])
    return None


def _bucket(tensors: backends.Tensors, options: None) -> tuple[str, int]:
    """By elements of x: the family is bound by memory."""
    assert tensors[0] is not None
    return "", tensors[0].numel()


_ADALN_MODULATE, _GATED_RESIDUAL, _GATED_RESIDUAL_ADALN = (
    backends.Op(name, _IMPLEMENTATIONS, check, _limits, _bucket)
    for name, check in (
        ("adaln_modulate", _check_adaln_modulate),
        ("gated_residual", _check_gated_residual),
        ("gated_residual_adaln", _check_gated_residual_adaln),
    )
)
for _op in (_ADALN_MODULATE, _GATED_RESIDUAL, _GATED_RESIDUAL_ADALN):
    backends.register(_op)
