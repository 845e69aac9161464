"""What PyTorch asks of an operator: opcheck, fullgraph compile, no recompile over lengths."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import presto_kernels
from presto_kernels import _library
from presto_kernels.ops.modulation import operators
from presto_kernels.testing.modulation import Case

pytestmark = pytest.mark.skipif(not _library.has_cpu_kernels, reason=f"no CPU kernels: {_library.error}")
SEAM, BACKWARD = torch.ops.presto_kernels.seam.default, torch.ops.presto_kernels.seam_backward.default
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def seam_arguments(layout: str, dtype: torch.dtype, norm: str = "layer") -> tuple:
    case = Case(
        "gated_residual_adaln", tokens=5, dim=24, dtype=dtype, x_layout=layout, weight="D", bias="BD", norm=norm
    )
    case = replace(case, residual2="BD") if norm == "dyt" else case
    tensors = (None if t is None else t.detach() for t in case.inputs().values())
    return (*tensors, operators.NORMS[norm], 1, 1e-6)


@pytest.mark.parametrize("layout", ["plain", "permuted", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["layer", "dyt"])
def test_opcheck_forward(layout, dtype, norm):
    torch.library.opcheck(SEAM, seam_arguments(layout, dtype, norm), test_utils=CHECKS)


@pytest.mark.parametrize("layout", ["plain", "permuted", "sliced"])
@pytest.mark.parametrize("norm", ["layer", "dyt"])
def test_opcheck_backward(layout, norm):
    x, branch, *modulations, norm, gate_fn, eps = seam_arguments(layout, torch.float32, norm)
    _, h, stats = SEAM(x, branch, *modulations, norm, gate_fn, eps)
    gradient = torch.randn(2, 24, 5).transpose(1, 2) if layout == "permuted" else torch.randn_like(h)
    extra = 0b110000000 if norm == operators.NORMS["dyt"] else 0  # alpha and residual2 are there with dyt
    for needs in (0b1111111 | extra, 0b0000001, 0b0100100 | extra):
        arguments = (gradient, gradient, x, stats, branch, *modulations, norm, gate_fn, needs)
        torch.library.opcheck(BACKWARD, arguments, test_utils=CHECKS)


def test_opcheck_without_branch_or_norm():
    x, branch, gate, *_ = seam_arguments("plain", torch.float32)
    torch.library.opcheck(SEAM, (x, *[None] * 8, 2, 0, 1e-6), test_utils=CHECKS)
    torch.library.opcheck(SEAM, (x, branch, gate, *[None] * 6, 0, 0, 0.0), test_utils=CHECKS)


def two_seams(x, branch, modulation):
    gate, scale, shift = modulation.chunk(3, dim=-1)
    x, h = presto_kernels.gated_residual_adaln(x, branch, gate, scale, shift, residual2=x[:1] * 0.5)
    h = presto_kernels.adaln_modulate(h * 2, scale, None, norm="rms")
    x, h = presto_kernels.gated_residual_adaln(x, h, None, None, scale, norm="dyt", alpha=gate[0, :1], residual2=branch)
    return presto_kernels.gated_residual(x, h, gate, gate_fn="sigmoid_one_minus")


@pytest.mark.parametrize("backend", [None, "reference"])
def test_fullgraph_compile_forward_and_backward(backend):
    torch._dynamo.reset()
    compiled = torch.compile(two_seams, fullgraph=True, backend="aot_eager")
    tensors = [torch.randn(2, 9, 16), torch.randn(2, 9, 16), torch.randn(2, 48)]
    with presto_kernels.use_backend(backend):
        results = []
        for function in (two_seams, compiled):
            leaves = [t.clone().requires_grad_() for t in tensors]
            y = function(*leaves)
            results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_inductor_takes_the_ops_as_they_are():
    torch._dynamo.reset()
    compiled = torch.compile(two_seams, fullgraph=True)
    tensors = [torch.randn(2, 9, 16), torch.randn(2, 9, 16), torch.randn(2, 48)]
    torch.testing.assert_close(compiled(*tensors), two_seams(*tensors), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_one_compile_serves_a_sweep_of_odd_lengths(training):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(two_seams, fullgraph=True, dynamic=True, backend=counter)
    compiles = []  # eps is symbolic at first, so torch may start over within the first call; after it, never
    for tokens in (7, 9, 33, 101, 1379):
        leaves = [torch.randn(2, tokens, 16), torch.randn(2, tokens, 16), torch.randn(2, 48)]
        for leaf in leaves:
            leaf.requires_grad_(training)
        y = compiled(*leaves)
        if training:
            torch.autograd.grad(y.sum(), leaves)
        compiles.append(counter.frame_count)
    assert compiles == [compiles[0]] * 5


def test_the_backward_stays_on_the_implementation_of_its_forward():
    """use_backend may have ended by the time backward runs."""
    x = torch.randn(1, 4, 8, requires_grad=True)
    called = []
    original = operators.backward_operator
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "backward_operator", lambda name: (called.append(name), original(name))[1])
        with presto_kernels.use_backend("cpu"):
            y = presto_kernels.adaln_modulate(x, None, None)
        with presto_kernels.use_backend("reference"):
            y.sum().backward()
    assert called == ["cpu"]
