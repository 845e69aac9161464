"""Which implementation of an op runs, and why.

``auto`` (the default) ranks an op's implementations by what was measured for this device, dtype and size
(:mod:`presto_kernels.tuned`; ``python -m bench tune`` writes it) and takes the first that is there and can honour the
call; nothing is timed at a first call.  Where nothing was measured an order by device stands in.  ``use_backend``
forces an implementation, and then a call it cannot honour raises.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from presto_kernels import _library, tuned
from presto_kernels.ops.checks import wants_gradient

BACKENDS = ("reference", "triton", "cuda", "cpu")
ATTENTION_BACKENDS = (*BACKENDS, "sdpa", "flash")

# What one call is, as an op's `check` gives it: its tensors, x first, and its options, whatever the op needs to judge.
Tensors = tuple[Tensor | None, ...]
Checked = tuple[Tensors, Any]


@dataclass(frozen=True)
class Choice:
    """What :func:`explain` answers: the implementation, the reason, the device it was measured on (None: nowhere)."""

    backend: str
    reason: str
    measured_on: str | None = None


@dataclass(frozen=True)
class Op:
    """One public op: its implementations, and what each of them refuses.

    ``check(*args, **kwargs)`` validates the arguments of the public function and returns (tensors, options).
    ``limits(backend, tensors, options)`` says in words why ``backend`` cannot take a call that its device and dtypes
    allow, or None.  ``bucket(tensors, options)`` is where measurements of such calls are filed: a kind, in words, and
    a size, an int that grows with the work.  ``order``, by device type, is what ``auto`` tries where nothing was
    measured.
    """

    name: str
    backends: tuple[str, ...]
    check: Callable[..., Checked]
    limits: Callable[[str, Tensors, Any], str | None]
    bucket: Callable[[Tensors, Any], tuple[str, int]]
    order: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("cpu", ("cpu", "reference")),
        ("cuda", ("cuda", "triton", "reference")),
    )


# Triton is looked for, not imported: that takes a second.  Its interpreter runs the kernels on CPU tensors; like Triton
# itself we look at the environment once, when we are imported.
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
TRITON_INTERPRETS = TRITON_INSTALLED and os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes")

_OPS: dict[str, Op] = {}
_forced: str | None = None
_forced_attention: str | None = None


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
    if backend == "flash" and not FLASH_INSTALLED:
        return "no flash-attn is installed"
    return None


# flash-attn 2, 3 (Hopper) and 4, by the module each of them installs.
FLASH_INSTALLED = any(importlib.util.find_spec(name) is not None for name in ("flash_attn", "flash_attn_interface"))


def _refusal(op: Op, backend: str, tensors: Tensors, options: Any) -> str | None:
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
    device = {"cpu": "cpu", "sdpa": x.device.type}.get(backend, "cuda")
    if x.device.type != device and not (backend == "triton" and TRITON_INTERPRETS and x.device.type == "cpu"):
        return f"it takes {device} tensors and x is on {x.device.type}"
    return op.limits(backend, tensors, options)


def _forced_for(op: Op) -> str | None:
    return _forced_attention if _forced_attention is not None and op.name == "attention" else _forced


def _bucket(op: Op, tensors: Tensors, options: Any) -> tuple[str, int]:
    kind, size = op.bucket(tensors, options)
    return (f"{kind} training".lstrip() if wants_gradient(tensors) else kind), size


def filed_under(op_name: str, *args: object, **kwargs: object) -> tuple[str, int]:
    """(kind, size) under which a measurement of this call belongs; for ``python -m bench tune``."""
    return _bucket(_OPS[op_name], *_OPS[op_name].check(*args, **kwargs))


def _ranked(op: Op, tensors: Tensors, options: Any) -> tuple[tuple[str, ...], tuple[str, str] | None]:
    """(implementations, best first; (reason, measured on) where they were measured)."""
    x = tensors[0]
    assert x is not None
    kind, size = _bucket(op, tensors, options)
    # A compiled graph serves every length, so no length may choose: the largest measured one does.
    measured = tuned.lookup(op.name, x.device, x.dtype, kind, None if torch.compiler.is_compiling() else size)
    if measured is not None:
        return measured[0], measured[1:]
    for device, order in op.order:
        if device == x.device.type:
            return order, None
    return (), None


def select(op: Op, tensors: Tensors, options: Any = None) -> str:
    """The backend for this call.  ``ValueError`` when the forced one cannot take it."""
    forced = _forced_for(op)
    if forced is not None:
        if forced not in op.backends:
            raise ValueError(f"{op.name}: has no {forced!r} implementation; it has {', '.join(op.backends)}")
        refusal = _refusal(op, forced, tensors, options)
        if refusal:
            raise ValueError(f"{op.name}: use_backend({forced!r}) cannot take this call: {refusal}")
        return forced
    for backend in _ranked(op, tensors, options)[0]:
        if backend in op.backends and _refusal(op, backend, tensors, options) is None:
            return backend
    return "reference"


@contextlib.contextmanager
def use_backend(name: str | None = None, *, attention: str | None = None) -> Iterator[None]:
    """Force an implementation inside a ``with`` block.

    ``name``: "reference", "triton", "cuda", "cpu", or None for ``auto``.  ``attention``: the same for ``attention``
    alone, and "sdpa" or "flash"; None: as ``name`` says.  An op that has no such implementation, or a call that it
    cannot honour, raises ``ValueError``.  A backward runs on the implementation of its forward.  The state is the
    process's, not the thread's: a context variable would break ``torch.compile(fullgraph=True)``.
    """
    global _forced, _forced_attention
    if name not in (None, *BACKENDS):
        raise ValueError(f"name: {name!r} is no backend; choose from {', '.join(BACKENDS)} or None")
    if attention not in (None, *ATTENTION_BACKENDS):
        raise ValueError(f"attention: {attention!r} is no backend; choose from {', '.join(ATTENTION_BACKENDS)} or None")
    before = _forced, _forced_attention
    _forced, _forced_attention = name, attention
    try:
        yield
    finally:
        _forced, _forced_attention = before


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
    tensors, options = op.check(*args, **kwargs)
    backend = select(op, tensors, options)
    x = tensors[0]
    assert x is not None
    forced = _forced_for(op)
    if forced is not None:
        return Choice(backend, f"forced by use_backend({forced!r})")
    order, measured = _ranked(op, tensors, options)
    if not order:
        return Choice(backend, f"only the reference runs on {x.device.type} tensors")
    before = order[: order.index(backend)] if backend in order else order
    passed_over = [f"{b}: {_refusal(op, b, tensors, options)}" for b in before if b in op.backends]
    reason, measured_on = measured or (f"first there is on {x.device.type}, not measured on this device", None)
    return Choice(backend, "; ".join([*passed_over, reason] if measured else passed_over or [reason]), measured_on)
