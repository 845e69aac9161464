"""The activations against float64, on every implementation that runs on this machine's CPU tensors."""

import inspect

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import presto_kernels
from presto_kernels import _library
from presto_kernels.testing import check
from presto_kernels.testing.activation import OPS, TENSORS, Case, cases, judge, run

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GATED = ("swiglu", "geglu", "singlu")


def backends() -> list[str]:
    """Triton, in its interpreter, has a process and tests of its own."""
    return [b for b in presto_kernels.available_backends()["swiglu"] if b in ("cpu", "reference")]


needs_cpu = pytest.mark.skipif("cpu" not in backends(), reason="the compiled CPU kernels are not here")


def label(case: Case) -> str:
    default = Case(case.op)
    return ",".join([case.op, *(f"{k}={v}" for k, v in vars(case).items() if k != "op" and v != getattr(default, k))])


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("case", cases(), ids=label)
def test_error_is_at_most_twice_that_of_pytorch(case, backend):
    with presto_kernels.use_backend(backend):
        check(judge(case))


# Results of 2 MiB and more: the gated ones are streamed past the cache, from a whole line on, in rows that begin on one
# and rows that do not; snake's rows are cut into pieces.
LARGE = [
    Case(op, batch=1, rows=rows, dim=dim, dtype=dtype, x_layout=layout)
    for dtype in (torch.float32, torch.bfloat16)
    for layout in ("plain", "columns")
    for op, rows, dim in (
        ("swiglu", 260, 4096),
        ("swiglu", 1, 1 << 20),
        ("geglu", 801, 1409),
        ("singlu", 33, 32001),
        ("snake", 5, 210_001),
        ("snake", 33, 32768),
        ("snake", 40_000, 37),
    )
]

# Channels-last audio comes to snake as rows of one position, and is worked on in vectors of channels.
ONE_POSITION = [
    Case("snake", batch=301, rows=rows, dim=1, dtype=dtype, alpha_dtype=torch.float32, strided=strided)
    for dtype in DTYPES
    for rows, strided in ((1, False), (37, True), (128, False), (1001, True))
]


@needs_cpu
@pytest.mark.parametrize("instruction_set", _library.INSTRUCTION_SETS[1:])
def test_every_instruction_set(instruction_set):
    """The sets differ in vector width, tails, how bf16 is rounded and how rows are streamed."""
    if _library.limit_instruction_set(instruction_set) != instruction_set:
        pytest.skip(f"this processor has no {instruction_set}")
    try:
        with presto_kernels.use_backend("cpu"):
            for case in cases() + LARGE[:7]:
                check(judge(case))
    finally:
        _library.limit_instruction_set(_library.INSTRUCTION_SETS[-1])


@needs_cpu
@pytest.mark.parametrize("instruction_set", _library.INSTRUCTION_SETS[1:])
def test_snake_of_one_position_is_that_of_many_turned_round(instruction_set):
    if _library.limit_instruction_set(instruction_set) != instruction_set:
        pytest.skip(f"this processor has no {instruction_set}")
    try:
        with presto_kernels.use_backend("cpu"):
            for case in ONE_POSITION:
                inputs = {name: tensor.detach() for name, tensor in case.inputs().items()}
                turned = inputs | {"x": inputs["x"].squeeze(2).mT[None].contiguous()}
                assert torch.equal(run(case, inputs).squeeze(2), run(case, turned)[0].mT)
                apart = inputs["x"].repeat(1, 3, 1)[:, case.rows : 2 * case.rows]
                assert torch.equal(run(case, inputs | {"x": apart}), run(case, inputs))
    finally:
        _library.limit_instruction_set(_library.INSTRUCTION_SETS[-1])


@needs_cpu
@pytest.mark.parametrize("case", LARGE, ids=label)
def test_large_results(case):
    with presto_kernels.use_backend("cpu"):
        check(judge(case))


@pytest.mark.parametrize("backend", backends())
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_stride_and_dtype(backend, data):
    dtype = st.sampled_from(DTYPES)
    op = data.draw(st.sampled_from(sorted(OPS)))
    case = Case(
        op,
        batch=data.draw(st.integers(1, 4)),
        rows=data.draw(st.integers(1, 40)),
        dim=data.draw(st.integers(1, 300)),
        axes=3 if op == "snake" else data.draw(st.integers(1, 4)),
        dtype=data.draw(dtype),
        alpha_dtype=data.draw(dtype),
        beta_dtype=data.draw(dtype),
        gate_first=data.draw(st.booleans()),
        strided=data.draw(st.booleans()),
        x_layout=data.draw(st.sampled_from(["plain", "permuted", "sliced", "columns"])),
        size=data.draw(st.sampled_from([1.0, 5.0])),
        seed=data.draw(st.integers(0, 999)),
    )
    # Snake's gradients are a sum for each channel: of a handful of numbers PyTorch's may be right to the bit by luck.
    assume(op != "snake" or case.batch * case.dim >= 32)
    with presto_kernels.use_backend(backend):
        check(judge(case))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dim", [136, 12 * 4096 + 11])
def test_gradients_are_bitwise_the_same_on_every_run_and_thread_count(backend, op, dim):
    case = Case(op, batch=3, rows=301 if dim == 136 else 5, dim=dim, dtype=torch.bfloat16, alpha_dtype=torch.float32)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            inputs = case.inputs()
            with presto_kernels.use_backend(backend):
                y = run(case, inputs)
                seen.append([y, *torch.autograd.grad(y.float().square().sum(), list(inputs.values()))])
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", [(1, 3, 40), (1, 8, 140_001), (1, 8, 131_072)])
def test_only_the_gradients_that_are_wanted(backend, shape):
    """Every subset of snake's inputs may be frozen, and the others' gradients stay what they were, to the bit."""
    case = Case("snake", *shape)
    inputs = case.inputs()
    with presto_kernels.use_backend(backend):
        full = dict(zip(inputs, torch.autograd.grad(run(case, inputs).sin().sum(), list(inputs.values())), strict=True))
        for wanted in (("x",), ("alpha",), ("beta",), ("x", "beta"), ("alpha", "beta")):
            some = {k: t.detach().requires_grad_(k in wanted) for k, t in inputs.items()}
            got = torch.autograd.grad(run(case, some).sin().sum(), [some[k] for k in wanted])
            for name, gradient in zip(wanted, got, strict=True):
                assert torch.equal(gradient, full[name]), name


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("batch, rows", [(0, 5), (2, 0)])
def test_empty_batches(backend, op, batch, rows):
    case = Case(op, batch=batch, rows=rows)
    inputs = case.inputs()
    with presto_kernels.use_backend(backend):
        y = run(case, inputs)
        gradients = torch.autograd.grad(y.sum(), list(inputs.values()))
    assert y.shape == (batch, rows, 64)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, inputs.values(), strict=True))


@pytest.mark.parametrize("backend", backends())
def test_a_snake_of_no_length(backend):
    inputs = Case("snake", rows=3, dim=0).inputs()
    with presto_kernels.use_backend(backend):
        y = presto_kernels.snake(**inputs)
        gradients = torch.autograd.grad(y.sum(), list(inputs.values()))
    assert y.shape == (2, 3, 0) and all(not g.any() for g in gradients)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("op", GATED)
def test_any_number_of_axes(backend, op):
    x = torch.randn(2, 3, 4, 5, 12)
    with presto_kernels.use_backend(backend):
        y = OPS[op](x)
        assert y.shape == (2, 3, 4, 5, 6)
        torch.testing.assert_close(OPS[op](x[0, 1]), y[0, 1])
        torch.testing.assert_close(OPS[op](x[1, 2, 3]), y[1, 2, 3])
        torch.testing.assert_close(OPS[op](x[1, 2, 3, 4]), y[1, 2, 3, 4])
        torch.testing.assert_close(OPS[op](x.permute(3, 1, 0, 2, 4)), y.permute(3, 1, 0, 2, 4))
        swapped = torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1)
        torch.testing.assert_close(OPS[op](swapped, gate_first=True), y)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite(backend, dtype):
    """NaN and infinity stay in their element, and large gates give what PyTorch gives."""
    gate = torch.tensor([float("inf"), float("nan"), 100.0, 20.0, 0.0, -20.0, -88.0, -90.0, -200.0], dtype=dtype)
    x = torch.stack([torch.full_like(gate, 2.0), gate]).flatten()
    with presto_kernels.use_backend(backend):
        for op, act in (("swiglu", torch.nn.functional.silu), ("geglu", torch.nn.functional.gelu)):
            first = 0 if op == "swiglu" else 1  # PyTorch's own GELU of infinity is NaN on some processors
            y = OPS[op](x)[first:]
            torch.testing.assert_close(y, 2 * act(gate)[first:], equal_nan=True, rtol=1e-2, atol=1e-20)
        y = presto_kernels.snake(gate[None, None], torch.ones(1), torch.ones(1))
        right = gate.double() + gate.double().sin().square()
        torch.testing.assert_close(y[0, 0], right.to(dtype), equal_nan=True)


@pytest.mark.parametrize("backend", backends())
def test_snake_of_large_arguments_and_small_amplitudes(backend):
    """Beyond what three constants for pi reduce; and beta 0, where 1e-9 alone divides."""
    x = torch.tensor([1e3, 1e5, 131072.0, 131073.0, 1e6, 1e9, 3e38, -1e7, 0.0])[None, None]
    with presto_kernels.use_backend(backend):
        y = presto_kernels.snake(x, torch.ones(1), torch.full((1,), 1e-9))
        sines = (y.double() - x.double()) * 2e-9
        torch.testing.assert_close(sines[..., :4], x.double().sin().square()[..., :4], rtol=1e-4, atol=1e-4)
        zero = presto_kernels.snake(torch.full((1, 1, 3), 1e-9), torch.ones(1), torch.zeros(1))
    torch.testing.assert_close(zero, torch.full((1, 1, 3), 1e-9 + 1e-18 / 1e-9), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("backend", backends())
def test_singlu_of_whole_half_and_large_gates(backend):
    """No digit of pi gets lost: whole gates give exactly 0, halves exactly 1 or -1, however large they are."""
    gate = torch.tensor([0.0, 0.5, 1.0, -0.5, 1.5, 1001.0, 4194303.5, 8388607.0, 3e38])
    x = torch.stack([torch.full_like(gate, 3.0), gate]).requires_grad_()
    right = torch.tensor([0.0, 1.0, 0.0, -1.0, -1.0, 0.0, -1.0, 0.0, 0.0])
    slope = torch.tensor([1.0, 0.0, -1.0, 0.0, 0.0, -1.0, 0.0, -1.0, 1.0])
    with presto_kernels.use_backend(backend):
        y = presto_kernels.singlu(x.flatten())
        (gradient,) = torch.autograd.grad(y.sum(), x)
        unbounded = presto_kernels.singlu(torch.tensor([2.0, 2.0, 2.0, float("inf"), float("nan"), 0.5]))
    assert torch.equal(y, 3 * right) and torch.equal(gradient[0], right)
    torch.testing.assert_close(gradient[1], 3 * torch.pi * slope, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(unbounded, torch.tensor([float("nan"), float("nan"), 2.0]), equal_nan=True)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("op", OPS)
def test_results_are_new_and_autocast_changes_nothing(backend, op):
    case = Case(op)
    inputs = {name: t.detach() for name, t in case.inputs().items()}
    with presto_kernels.use_backend(backend):
        y = run(case, inputs)
        assert y.untyped_storage().data_ptr() != inputs["x"].untyped_storage().data_ptr()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(run(case, inputs), y)


@pytest.mark.parametrize("op", OPS)
def test_float64_runs_on_the_reference(op):
    case = Case(op, batch=1, rows=2, dim=3, dtype=torch.float64)
    inputs = case.inputs()
    assert presto_kernels.explain(op, **inputs).backend == "reference"
    assert torch.autograd.gradcheck(lambda *t: OPS[op](*t), tuple(inputs.values()))


@pytest.mark.slow
@needs_cpu
@pytest.mark.parametrize("op", ["swiglu", "snake"])
def test_more_than_two_to_the_31_elements(op):
    """Outputs of 4.3 GB; the input is one row seen two million times."""
    rows, width = 2**21 + 1, 1024 if op == "snake" else 2048
    x = torch.randn(1, 1, width, dtype=torch.bfloat16).expand(1, rows, width)
    parameters = {"alpha": torch.ones(rows), "beta": torch.ones(rows)} if op == "snake" else {}
    with torch.no_grad(), presto_kernels.use_backend("cpu"):
        y = OPS[op](x, **parameters)
    assert y.numel() > 2**31
    assert torch.equal(y[0, 0], y[0, -1]) and torch.equal(y[0, 0], y[0, rows // 2])


X, C = torch.randn(2, 3, 8), torch.ones(3)
BAD = {
    "x is not a tensor": (lambda: presto_kernels.swiglu([1.0]), TypeError, "swiglu: x must be a tensor, got list"),
    "x is integer": (lambda: presto_kernels.geglu(X.int()), TypeError, "geglu: x must be float32.*got torch.int32"),
    "x is odd": (lambda: presto_kernels.swiglu(X[..., :7]), ValueError, r"x must be \[\.\.\., 2 D\].*got \[2, 3, 7\]"),
    "x is empty": (lambda: presto_kernels.swiglu(X[..., :0]), ValueError, r"x must be \[\.\.\., 2 D\]"),
    "x is a number": (
        lambda: presto_kernels.swiglu(torch.ones(())),
        ValueError,
        r"x must be \[\.\.\., 2 D\].*got \[\]",
    ),
    "gate_first is no bool": (
        lambda: presto_kernels.swiglu(X, gate_first=1),
        TypeError,
        "gate_first must be a bool, got int",
    ),
    "x is 2-D": (lambda: presto_kernels.snake(X[0], C, C), ValueError, r"x must be \[B, C, T\], got \[3, 8\]"),
    "alpha has a wrong width": (
        lambda: presto_kernels.snake(X, C[:2], C),
        ValueError,
        r"alpha must be \[3\] beside x \[2, 3, 8\], got \[2\]",
    ),
    "beta is 3-D": (lambda: presto_kernels.snake(X, C, C[None, :, None]), ValueError, r"beta must be \[3\]"),
    "beta is a number": (lambda: presto_kernels.snake(X, C, 1.0), TypeError, "beta must be a tensor, got float"),
    "alpha is elsewhere": (
        lambda: presto_kernels.snake(X, C.to("meta"), C),
        ValueError,
        "alpha is on meta and x on cpu",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("op", OPS)
def test_transforms_are_refused_by_name(op):
    inputs = {k: t.detach() for k, t in Case(op).inputs().items()}
    rest = {k: t for k, t in inputs.items() if k != "x"}
    call = lambda x: OPS[op](x, **rest)  # noqa: E731
    with pytest.raises(NotImplementedError, match=f"{op}: torch.func transforms"):
        torch.func.vmap(call)(inputs["x"].unsqueeze(0))
    with pytest.raises(NotImplementedError, match=f"{op}: "):
        torch.func.jvp(call, (inputs["x"],), (inputs["x"],))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"{op}: forward-mode"):
        call(torch.autograd.forward_ad.make_dual(inputs["x"], inputs["x"]))


@needs_cpu
@pytest.mark.parametrize("op", OPS)
def test_gradients_are_first_order_only(op):
    case = Case(op)
    inputs = case.inputs()
    (gradient,) = torch.autograd.grad(run(case, inputs).square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@needs_cpu
def test_the_backward_stays_on_the_implementation_of_its_forward():
    """use_backend may have ended by the time backward runs."""
    x = torch.randn(1, 4, 8, requires_grad=True)
    from presto_kernels.ops.activation import operators

    called, original = [], operators.backward_operator
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "backward_operator", lambda *which: (called.append(which), original(*which))[1])
        with presto_kernels.use_backend("cpu"):
            y = presto_kernels.swiglu(x)
        with presto_kernels.use_backend("reference"):
            y.sum().backward()
    assert called == [("glu", "cpu")]


def test_every_tensor_argument_is_tested():
    """A new argument that the cases do not know would go untested."""
    for op, function in OPS.items():
        assert set(inspect.signature(function).parameters) - {"gate_first"} == set(TENSORS[op])
