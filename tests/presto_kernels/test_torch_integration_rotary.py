"""What PyTorch asks of ``qk_norm_rope``'s operators: opcheck, fullgraph compile, no recompile over lengths."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import presto_kernels
from presto_kernels import _library
from presto_kernels.ops.rotary import operators
from presto_kernels.testing.rotary import Case

pytestmark = pytest.mark.skipif(not _library.has_cpu_kernels, reason=f"no CPU kernels: {_library.error}")
FORWARD = torch.ops.presto_kernels.qk_norm_rope.default
BACKWARD = torch.ops.presto_kernels.qk_norm_rope_backward.default
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
CASE = Case(tokens=5, heads=4, k_heads=2, dim=24, rotary=16, bias=True)
DYT = replace(CASE, norm="dyt")


def tensors(case: Case) -> list[torch.Tensor | None]:
    return [None if t is None else t.detach() for t in case.inputs().values()]


@pytest.mark.parametrize("layout", ["plain", "fused", "permuted", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_forward(layout, dtype):
    case = replace(CASE, layout=layout, dtype=dtype, k_tokens=7)
    torch.library.opcheck(FORWARD, (*tensors(case), 2, 1e-6, False), test_utils=CHECKS)
    torch.library.opcheck(FORWARD, (*tensors(replace(case, k_heads=0, k_tokens=None)), 0, 0.0, True), test_utils=CHECKS)
    torch.library.opcheck(FORWARD, (*tensors(replace(case, norm="dyt")), 4, 0.0, False), test_utils=CHECKS)


@pytest.mark.parametrize("layout", ["plain", "fused", "permuted", "strided"])
def test_opcheck_backward(layout):
    inputs = tensors(replace(CASE, layout=layout))
    grads = [torch.randn(t.shape) for t in inputs[:2]]
    if layout == "permuted":
        grads = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in grads]
    torch.library.opcheck(BACKWARD, (*grads, *inputs, 1, 1e-6, False, 0b111111), test_utils=CHECKS)
    inputs = tensors(replace(DYT, layout=layout))
    torch.library.opcheck(BACKWARD, (*grads, *inputs, 4, 0.0, False, 0b11111111), test_utils=CHECKS)
    torch.library.opcheck(BACKWARD, (*grads, *inputs, 4, 0.0, False, 0b10000000), test_utils=CHECKS)


def test_opcheck_backward_of_parts():
    """Some gradients, one side, and a rotation alone, which needs neither q nor k."""
    inputs = tensors(CASE)
    grads = [torch.randn(t.shape) for t in inputs[:2]]
    torch.library.opcheck(BACKWARD, (*grads, *inputs, 1, 1e-6, False, 0b010100), test_utils=CHECKS)
    of_q = [None if name.startswith("k") else t for name, t in zip(CASE.inputs(), inputs, strict=True)]
    torch.library.opcheck(BACKWARD, (grads[0], None, *of_q, 2, 1e-6, False, 0b010101), test_utils=CHECKS)
    turned = (None, grads[1], None, None, *inputs[2:6], *[None] * 6)
    torch.library.opcheck(BACKWARD, (*turned, 0, 0.0, False, 0b000010), test_utils=CHECKS)


def before_attention(qkv, q_weight, k_weight, cos, sin):
    q, k, v = qkv.unflatten(-1, (3, 2, 16)).unbind(2)
    q, k = presto_kernels.qk_norm_rope(q, k, cos, sin, q_weight=q_weight, k_weight=k_weight)
    q, _ = presto_kernels.qk_norm_rope(q * 2, None, cos, sin, norm=None, interleaved=True)
    q, _ = presto_kernels.qk_norm_rope(q, None, cos, sin, q_weight=k_weight, q_alpha=q_weight[:1], norm="dyt")
    return q * k + v


def arguments(tokens: int) -> list[torch.Tensor]:
    angle = torch.randn(tokens, 4)
    return [torch.randn(2, tokens, 96), torch.randn(16), torch.randn(16), angle.cos(), angle.sin()]


@pytest.mark.parametrize("backend", [None, "reference"])
def test_fullgraph_compile_forward_and_backward(backend):
    torch._dynamo.reset()
    compiled = torch.compile(before_attention, fullgraph=True, backend="aot_eager")
    given = arguments(9)
    with presto_kernels.use_backend(backend):
        results = []
        for function in (before_attention, compiled):
            leaves = [t.clone().requires_grad_() for t in given[:3]]
            y = function(*leaves, *given[3:])
            results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_inductor_takes_the_op_as_it_is():
    torch._dynamo.reset()
    given = arguments(9)
    compiled = torch.compile(before_attention, fullgraph=True)
    torch.testing.assert_close(compiled(*given), before_attention(*given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_one_compile_serves_a_sweep_of_odd_lengths(training):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(before_attention, fullgraph=True, dynamic=True, backend=counter)
    compiles = []  # eps is symbolic at first, so torch may start over within the first call; after it, never
    for tokens in (7, 9, 33, 101, 1379):
        given = arguments(tokens)
        for leaf in given[:3]:
            leaf.requires_grad_(training)
        y = compiled(*given)
        if training:
            torch.autograd.grad(y.sum(), given[:3])
        compiles.append(counter.frame_count)
    assert compiles == [compiles[0]] * 5


def test_the_backward_stays_on_the_implementation_of_its_forward(monkeypatch):
    """use_backend may have ended by the time backward runs."""
    q = torch.randn(1, 4, 2, 8, requires_grad=True)
    called, original = [], operators.backward_operator
    monkeypatch.setattr(operators, "backward_operator", lambda name: (called.append(name), original(name))[1])
    with presto_kernels.use_backend("cpu"):
        y, _ = presto_kernels.qk_norm_rope(q, None, None, None)
    with presto_kernels.use_backend("reference"):
        y.sum().backward()
    assert called == ["cpu"]
