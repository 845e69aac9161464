"""What PyTorch asks of the activations' operators: opcheck, fullgraph compile, no recompile over lengths."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import presto_kernels
from presto_kernels import _library
from presto_kernels.testing.activation import Case

pytestmark = pytest.mark.skipif(not _library.has_cpu_kernels, reason=f"no CPU kernels: {_library.error}")
OPERATORS = torch.ops.presto_kernels
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
LAYOUTS = ("plain", "permuted", "sliced", "columns")


def inputs(op: str, layout: str, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [t.detach() for t in Case(op, rows=5, dim=12, dtype=dtype, x_layout=layout).inputs().values()]


def upstream(layout: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    grad = torch.randn(2, 12, 5).transpose(1, 2) if layout == "permuted" else torch.randn(2, 5, 12)
    return grad.to(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_glu(layout):
    for dtype in (torch.float32, torch.bfloat16):
        (x,) = inputs("swiglu", layout, dtype)
        for act in (0, 2):
            torch.library.opcheck(OPERATORS.glu.default, (x, act, True), test_utils=CHECKS)
    for act in (1, 2):
        arguments = (upstream(layout, torch.bfloat16), x, act, False)
        torch.library.opcheck(OPERATORS.glu_backward.default, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_snake(layout):
    for dtype in (torch.float32, torch.bfloat16):
        tensors = inputs("snake", layout, dtype)
        torch.library.opcheck(OPERATORS.snake.default, tuple(tensors), test_utils=CHECKS)
    for needs in (7, 1, 6):
        arguments = (upstream(layout, torch.bfloat16), *tensors, needs)
        torch.library.opcheck(OPERATORS.snake_backward.default, arguments, test_utils=CHECKS)


def model(x, alpha, beta):
    y = presto_kernels.geglu(presto_kernels.swiglu(x), gate_first=True)
    y = presto_kernels.swiglu(y.flatten(0, 1)).unflatten(0, y.shape[:2])
    return presto_kernels.snake(presto_kernels.singlu(y).transpose(1, 2), alpha, beta)


def leaves(tokens: int, requires_grad: bool = True) -> list[torch.Tensor]:
    tensors = [torch.randn(2, tokens, 128), torch.rand(8) + 0.5, torch.rand(8) + 0.5]
    return [t.requires_grad_(requires_grad) for t in tensors]


@pytest.mark.parametrize("backend", [None, "reference"])
def test_fullgraph_compile_forward_and_backward(backend):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    tensors = leaves(9)
    with presto_kernels.use_backend(backend):
        results = []
        for function in (model, compiled):
            y = function(*tensors)
            results.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_inductor_takes_the_ops_as_they_are():
    torch._dynamo.reset()
    compiled, tensors = torch.compile(model, fullgraph=True), leaves(9, requires_grad=False)
    torch.testing.assert_close(compiled(*tensors), model(*tensors), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_one_compile_serves_a_sweep_of_odd_lengths(training):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    compiles = []
    for tokens in (7, 9, 33, 101, 1379):
        tensors = leaves(tokens, training)
        y = compiled(*tensors)
        if training:
            torch.autograd.grad(y.sum(), tensors)
        compiles.append(counter.frame_count)
    assert compiles == [compiles[0]] * 5
