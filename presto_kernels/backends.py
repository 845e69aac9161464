"""Which implementation of an op runs, and why.

``auto`` (the default) takes the first implementation that is there and can honour the call, in an order by device;
``use_backend`` forces one, and then a call it cannot honour raises.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_kernels import _library

BACKENDS = ("reference", "triton", "cuda", "cpu")


@dataclass(frozen=True)
class Choice:
    """What :func:`explain` answers: the implementation, the reason, the device it was measured on (None: nowhere)."""

    backend: str
    reason: str
    measured_on: str | None = None


@dataclass(frozen=True)
class Op:
    """One public op: its implementations, and what each of them refuses.

    ``check`` validates the arguments of the public function and returns its tensors, x first.  ``limits(backend, x)``
    says in words why ``backend`` cannot take a call that its device and dtypes allow, or None.
    """

    name: str
    backends: tuple[str, ...]
    check: Callable[..., tuple[Tensor | None, ...]]
    limits: Callable[[str, Tensor], str | None]


# Order tried by `auto`, by device type, and what it rests on: (reason, measured on).
_ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
_WHY = {
    "cpu": (
        "first there is: faster than eager PyTorch in 57 of 60 rows of bench/results/ops-cpu.json, 0.93x in the worst",
        "AMD EPYC, 2 cores, AVX-512 BF16",
    ),
    "cuda": ("first there is, not measured yet: C++ is built ahead of time, Triton compiles at the first call", None),
}

# Triton is looked for, not imported: that takes a second.  Its interpreter runs the kernels on CPU tensors; like Triton
# itself we look at the environment once, when we are imported.
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
TRITON_INTERPRETS = TRITON_INSTALLED and os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes")

_OPS: dict[str, Op] = {}
_forced: str | None = None


def register(op: Op) -> None:
    """Make an op known to :func:`available_backends`, :func:`explain` and :func:`select`."""
    _OPS[op.name] = op


def _missing(backend: str) -> str | None:
    """Why `backend` is not there at all on this machine, or None."""
    if backend == "triton" and TRITON_INSTALLED and not (TRITON_INTERPRETS or torch.cuda.is_available()):
        return "triton needs a GPU (or TRITON_INTERPRET=1)"
    return _not_built(backend)


def _not_built(backend: str) -> str | None:
    """The part of `_missing` that asks no driver, so that torch.compile can trace it."""
    if backend == "cpu" and not _library.has_cpu_kernels:
        return _library.error or "this processor has no AVX2"
    if backend == "cuda" and not _library.has_cuda_kernels:
        return _library.error or "the library has no CUDA code, or torch no CUDA"
    if backend == "triton" and not TRITON_INSTALLED:
        return "triton is not installed"
    return None


def _refusal(op: Op, backend: str, tensors: tuple[Tensor | None, ...]) -> str | None:
    """Why `backend` cannot take this call, or None."""
    if backend == "reference":
        return None
    missing = _not_built(backend)
    if missing:
        return missing
    for t in tensors:
        if t is not None and t.dtype == torch.float64:
            return "float64 runs only on the reference"
    x = tensors[0]
    assert x is not None
    device = "cuda" if backend == "triton" else backend
    if x.device.type != device and not (backend == "triton" and TRITON_INTERPRETS and x.device.type == "cpu"):
        return f"it takes {device} tensors and x is on {x.device.type}"
    return op.limits(backend, x)


def select(op: Op, tensors: tuple[Tensor | None, ...]) -> str:
    """The backend for this call.  ``ValueError`` when the forced one cannot take it."""
    if _forced is not None:
        return _forced_choice(op, tensors)
    x = tensors[0]
    assert x is not None
    for backend in _ORDER.get(x.device.type, ()):
        if backend in op.backends and _refusal(op, backend, tensors) is None:
            return backend
    return "reference"


def _forced_choice(op: Op, tensors: tuple[Tensor | None, ...]) -> str:
    assert _forced is not None
    if _forced not in op.backends:
        raise ValueError(f"{op.name}: has no {_forced!r} implementation; it has {', '.join(op.backends)}")
    refusal = _refusal(op, _forced, tensors)
    if refusal:
        raise ValueError(f"{op.name}: use_backend({_forced!r}) cannot take this call: {refusal}")
    return _forced


@contextlib.contextmanager
def use_backend(name: str | None = None) -> Iterator[None]:
    """Force an implementation inside a ``with`` block.

    ``name``: "reference", "triton", "cuda", "cpu", or None for ``auto``.  An op that has no such implementation, or a
    call that it cannot honour, raises ``ValueError``.  A backward runs on the implementation of its forward.  The state
    is the process's, not the thread's: a context variable would break ``torch.compile(fullgraph=True)``.
    """
    global _forced
    if name not in (None, *BACKENDS):
        raise ValueError(f"name: {name!r} is no backend; choose from {', '.join(BACKENDS)} or None")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def available_backends() -> dict[str, tuple[str, ...]]:
    """Op name -> the implementations that can run on this machine, reference last."""
    return {
        name: tuple(sorted((b for b in op.backends if _missing(b) is None), key=lambda b: b == "reference"))
        for name, op in _OPS.items()
    }


def explain(op_name: str, *args: object, **kwargs: object) -> Choice:
    """Which implementation ``op_name(*args, **kwargs)`` would run, and why; nothing is computed.

    Errors: ``ValueError`` for an unknown op, and whatever the op itself raises for these arguments.
    """
    if op_name not in _OPS:
        raise ValueError(f"op_name: no op is called {op_name!r}; there are {', '.join(_OPS)}")
    op = _OPS[op_name]
    tensors = op.check(*args, **kwargs)
    backend = select(op, tensors)
    x = tensors[0]
    assert x is not None
    if _forced is not None:
        return Choice(backend, f"forced by use_backend({_forced!r})")
    order = _ORDER.get(x.device.type)
    if order is None:
        return Choice(backend, f"only the reference runs on {x.device.type} tensors")
    passed_over = [f"{b}: {_refusal(op, b, tensors)}" for b in order[: order.index(backend)] if b in op.backends]
    if passed_over:
        return Choice(backend, "; ".join(passed_over))
    reason, measured_on = _WHY[x.device.type]
    return Choice(backend, reason, measured_on)
