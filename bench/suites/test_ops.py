"""Every op of `bench.op_cases`, as presto's dispatch runs it; an op that `bench ops` would refuse fails instead."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from bench import op_timers, ops
from bench.op_cases import OPS, Case
from bench.op_implementations import Implementation

DTYPES = ("bf16", "fp32")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found = list(_cases(every=metafunc.config.getoption("shapes") == "all"))
    metafunc.parametrize(("op", "shape", "dtype", "direction"), found, ids=["-".join(case) for case in found])


def _cases(*, every: bool) -> Iterator[tuple[str, str, str, str]]:
    for name, op in OPS.items():
        for shape in op.shapes if every else op.shapes[:1]:
            for dtype in DTYPES:
                yield name, shape, dtype, "forward"
                if op.backward:
                    yield name, shape, dtype, "backward"


def test_op(op: str, shape: str, dtype: str, direction: str, device, time_it) -> None:
    case = Case(OPS[op], OPS[op].parse(shape), dtype, direction == "backward", device)
    ops.check_implementation(case, Implementation("presto", case.op.presto))
    inputs = case.inputs(seed=0)
    call = functools.partial(case.op.presto, *inputs, **case.constants())
    must = {"bytes": case.count.bytes, "flops": case.count.flops}
    if not case.backward:
        with torch.no_grad():
            time_it(call, **must)
        return
    grads = op_timers.random_grads(call(), seed=0)
    time_it(lambda outputs: torch.autograd.grad(outputs, inputs, grads), prepare=call, **must)
