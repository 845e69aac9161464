"""The Triton kernels of the activations, run by Triton's interpreter on CPU tensors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import presto_kernels
from presto_kernels.ops.activation import triton_kernels
from presto_kernels.testing import check
from presto_kernels.testing.activation import OPS, Case, cases, judge, run

BF16 = torch.bfloat16


KNOBS = triton_kernels.KNOBS
# A row of a test is several programs, each of two steps backward, as a long one is; and fewer steps are quicker.
SMALL = replace(KNOBS, glu_elements=256, forward_elements=128, backward_elements=64, chunk=128, sum_terms=4)


@pytest.fixture(autouse=True)
def on_triton(monkeypatch):
    monkeypatch.setattr(triton_kernels, "KNOBS", SMALL)
    with presto_kernels.use_backend("triton"):
        yield


def chosen() -> list[Case]:
    """The interpreter takes some 10 ms a program, and a row of snake is one or more: few rows; bf16 rounds most."""
    every = [replace(case, rows=min(case.rows, 5), dim=min(case.dim, 400)) for case in cases()]
    full = [case for case in every if case.dtype == BF16]
    return [*full, *[case for case in every if case not in full][::3]]


@pytest.mark.parametrize("case", chosen(), ids=str)
def test_error_is_at_most_twice_plain_pytorch(case):
    check(judge(case))


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.builds(
        Case,
        op=st.sampled_from(sorted(OPS)),
        batch=st.integers(1, 3),
        rows=st.integers(1, 5),
        dim=st.integers(1, 90),
        dtype=st.sampled_from([torch.float32, BF16, torch.float16]),
        alpha_dtype=st.sampled_from([None, torch.float32, BF16]),
        beta_dtype=st.sampled_from([None, torch.float32, torch.float16]),
        gate_first=st.booleans(),
        strided=st.booleans(),
        x_layout=st.sampled_from(["plain", "permuted", "sliced", "columns"]),
        seed=st.integers(0, 9),
    )
)
def test_any_call(case):
    check(judge(case))


WIDE = (
    Case("swiglu", batch=1, rows=2, dim=2049, dtype=BF16),
    Case("snake", batch=1, rows=2, dim=8192 + 1031, dtype=BF16),
    Case("snake", batch=2, rows=1, dim=4096),
)


@pytest.mark.parametrize("case", WIDE, ids=str)
def test_with_the_knobs_of_a_gpu(case, monkeypatch):
    """Several blocks of columns of glu; several blocks of snake forward, several chunks and steps backward."""
    monkeypatch.setattr(triton_kernels, "KNOBS", KNOBS)
    check(judge(case))


@pytest.mark.parametrize("op", OPS)
def test_gradients_are_bitwise_the_same_on_every_run(op):
    seen = []
    for _ in range(2):
        case = Case(op, rows=3, dim=300, dtype=BF16)
        inputs = case.inputs()
        y = run(case, inputs)
        seen.append([y, *torch.autograd.grad(y.float().square().sum(), list(inputs.values()))])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_a_gradient_does_not_depend_on_which_others_are_wanted():
    x, alpha, beta = (t.detach() for t in Case("snake", rows=2, dim=100, dtype=BF16).inputs().values())
    backward = torch.ops.presto_kernels.snake_backward_triton
    every = backward(x, x, alpha, beta, 7)
    for needs in range(8):
        some = backward(x, x, alpha, beta, needs)
        for bit in range(3):
            assert torch.equal(some[bit], every[bit]) if needs >> bit & 1 else some[bit].numel() == 0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("batch, rows", [(0, 5), (2, 0)])
def test_empty(op, batch, rows):
    case = Case(op, batch=batch, rows=rows)
    inputs = case.inputs()
    y = run(case, inputs)
    assert y.shape == (batch, rows, 64)
    for t, gradient in zip(inputs.values(), torch.autograd.grad(y.sum(), list(inputs.values())), strict=True):
        assert gradient.shape == t.shape and not gradient.any()


CHECKS = ("test_schema", "test_faketensor")


def test_opcheck_on_permuted_layouts():
    operators = torch.ops.presto_kernels
    x = Case("swiglu", dim=5, x_layout="permuted").inputs()["x"].detach()
    grad = torch.randn(2, 5, 7).transpose(1, 2)
    torch.library.opcheck(operators.glu_triton, (x, 0, False), test_utils=CHECKS)
    for act in (1, 2):
        torch.library.opcheck(operators.glu_backward_triton, (grad, x, act, True), test_utils=CHECKS)
    x, alpha, beta = (t.detach() for t in Case("snake", dim=5, x_layout="permuted", strided=True).inputs().values())
    torch.library.opcheck(operators.snake_triton, (x, alpha, beta), test_utils=CHECKS)
    for needs in (7, 1, 4):
        torch.library.opcheck(operators.snake_backward_triton, (grad, x, alpha, beta, needs), test_utils=CHECKS)


def test_compiles_as_one_graph_for_every_odd_length():
    def model(x, alpha, beta):
        y = presto_kernels.singlu(presto_kernels.geglu(presto_kernels.swiglu(x)))
        return presto_kernels.snake(y.transpose(1, 2), alpha, beta).sum()

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (5, 3, 7, 9):
        leaves = [torch.randn(2, tokens, 64).requires_grad_(), *(torch.rand(8).add(0.5).requires_grad_() for _ in "ab")]
        with torch.compiler.set_stance("default" if tokens == 5 else "fail_on_recompile"):
            got = torch.autograd.grad(compiled(*leaves), leaves)
        for a, b in zip(got, torch.autograd.grad(model(*leaves), leaves), strict=True):
            assert torch.equal(a, b)


def test_what_is_too_large_is_refused_by_name():
    parameter = torch.ones(1).expand(2**16)
    many = torch.zeros(1, 1, 8).expand(2**16, 2**16, 8)
    with pytest.raises(ValueError, match="blocks of 128 elements"):
        presto_kernels.snake(many, parameter, parameter)
    with pytest.raises(ValueError, match="more than 2147418112 rows"):
        presto_kernels.swiglu(many)
    with pytest.raises(ValueError, match="rows"):
        torch.ops.presto_kernels.glu_triton(many, 0, False)
    with presto_kernels.use_backend():
        assert presto_kernels.explain("swiglu", many).backend != "triton"
    assert triton_kernels.snake_limits(1, 2**31) is not None and triton_kernels.glu_limits(1, 2**27) is not None


# Kernels that are wrong, each by one line, and a call that shows it.
BROKEN = {
    "value and gate exchanged in swiglu": (
        "glu_forward",
        "gate *= tl.sigmoid(gate)",
        "gate = gate * tl.sigmoid(value)",
        Case("swiglu"),
    ),
    "tanh-like GELU": (
        "glu_forward",
        "gate *= _gelu_cdf(gate)",
        "gate *= tl.sigmoid(1.702 * gate)",
        Case("geglu"),
    ),
    "slope of SiLU without its second term": (
        "glu_backward",
        "slope = part * (1.0 + gate * (1.0 - part))",
        "slope = part",
        Case("swiglu"),
    ),
    "slope of GELU without its density": (
        "glu_backward",
        "slope = part + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)",
        "slope = part",
        Case("geglu"),
    ),
    "slope of the sine without pi": (
        "glu_backward",
        "slope *= 3.141592653589793",
        "pass",
        Case("singlu"),
    ),
    "a sine for its cosine in singlu": (
        "glu_forward",
        "gate, _ = sin_cos_pi(gate)",
        "_, gate = sin_cos_pi(gate)",
        Case("singlu"),
    ),
    "last columns dropped": (
        "glu_forward",
        "mask = (row < rows) & (cols < _length(D, UNIT, VECTOR))",
        "mask = (row < rows) & (cols < _length(D, 16, True))",
        Case("swiglu", dim=40),
    ),
    "sine not squared": (
        "snake_forward",
        "value + s * s * _factor(",
        "value + s * _factor(",
        Case("snake"),
    ),
    "alpha forgotten in dx": (
        "snake_backward",
        "slope = 2.0 * a * _factor(",
        "slope = 2.0 * _factor(",
        Case("snake"),
    ),
    "later steps of a chunk dropped": (
        "snake_backward",
        "for start in range(0, CHUNK, BLOCK):",
        "for start in range(0, BLOCK, BLOCK):",
        Case("snake", batch=1, rows=5, dim=128),
    ),
    "last terms dropped": (
        "snake_backward_sums",
        "while done < terms:  #",
        "while done + TERMS < terms:  #",
        Case("snake"),
    ),
}


@pytest.fixture
def unwritten_is_nan():
    """What a kernel leaves out must not be an earlier right result that happens to lie there."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["fp32", "bf16"])
def test_the_tolerance_catches(name, dtype, mutant, monkeypatch, unwritten_is_nan):
    kernel, right, wrong, case = BROKEN[name]
    case = replace(case, dtype=dtype)
    check(judge(case))
    monkeypatch.setattr(triton_kernels, kernel, getattr(mutant(right, wrong), kernel))
    with pytest.raises(AssertionError, match="BEYOND"):
        check(judge(case))
