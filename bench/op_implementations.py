"""Who computes an op in a bench: eager PyTorch, torch.compile, other baselines, presto's backends, a plain copy."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import presto_kernels
from bench import op_timers
from bench.op_cases import Case, Outputs

COPY = "copy"


@dataclass(frozen=True)
class Implementation:
    """A way to compute an op; `backend` is what `use_backend` gets while it runs (presto only)."""

    name: str
    function: Callable[..., Outputs]
    backend: str | None = None


def implementations(case: Case, *, compiled: bool) -> list[Implementation]:
    """Eager, torch.compile of it (fresh and static: no dynamic-shape variant is timed), and presto's backends."""
    found = [Implementation("eager", case.op.eager)]
    if compiled:
        torch._dynamo.reset()
        found.append(Implementation("compile", torch.compile(case.op.eager, dynamic=False, fullgraph=True)))
    beside = dict(case.op.baselines) | (dict(case.op.cuda_baselines) if case.device.type == "cuda" else {})
    found += [Implementation(name, function) for name, function in beside.items()]
    return [*found, *(Implementation(f"presto {name}", case.op.presto, name) for name in backends(case))]


def backends(case: Case) -> list[str]:
    """Presto's implementations that take this case, the reference last."""
    name, arguments = public_call(case)
    found = []
    for backend in presto_kernels.available_backends()[name]:
        try:
            with forced(case, backend):
                presto_kernels.explain(name, **arguments)
        except ValueError:
            continue
        found.append(backend)
    return found


def public_call(case: Case) -> tuple[str, dict[str, Any]]:
    """The public op and its arguments, as `explain` takes them."""
    tensors = dict(zip(case.op.tensors, case.inputs(seed=0), strict=True))
    return case.op.public or case.op.name, tensors | case.constants()


def forced(case: Case, backend: str | None) -> contextlib.AbstractContextManager[None]:
    """`use_backend` for this op: attention has implementations that no other op has."""
    if (case.op.public or case.op.name) == "attention":
        return presto_kernels.use_backend(attention=backend)
    return presto_kernels.use_backend(backend)


def copy_of_same_bytes(case: Case) -> Implementation:
    """Reads half of the case's bytes and writes the other half, with PyTorch's plainest elementwise kernel (neg)."""
    sources: dict[int, Tensor] = {}

    def copy(*inputs: Tensor, **constants: object) -> Outputs:
        key = inputs[0].data_ptr()
        if key not in sources:
            sources[key] = torch.randn(case.count.bytes // 8, device=case.device)
        return (sources[key].neg(),)

    return Implementation(COPY, copy)


def auto(case: Case) -> str:
    """Name of the implementation that presto's dispatch takes for this case."""
    name, arguments = public_call(case)
    return f"presto {presto_kernels.explain(name, **arguments).backend}"


def timed(
    case: Case,
    implementation: Implementation,
    sets: Sequence[Outputs],
    mode: str,
    *,
    repeats: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> op_timers.Timed:
    """The implementation on these input sets, with its backend forced only around it; arguments as in `op_timers`."""
    backward = case.backward and implementation.name != COPY
    function = functools.partial(implementation.function, **case.constants())

    def within() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        stack.enter_context(forced(case, implementation.backend))
        stack.enter_context(torch.set_grad_enabled(backward))
        return stack

    make = op_timers.backward if backward else op_timers.forward
    with within():
        bare = make(function, sets, mode, case.device, repeats=repeats, clock=clock)

    def measured(part: int) -> float:
        with within():
            return bare.measure(part)

    def once(index: int) -> Outputs:
        with within():
            return bare.once(index)

    return op_timers.Timed(measured, once, bare.tensors)
