"""The sampler family against float64, on every implementation that runs on this machine's CPU tensors."""

import inspect
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import presto_kernels
from presto_kernels import _library
from presto_kernels.testing import check
from presto_kernels.testing.sampler import OPS, TENSORS, Case, cases, judge, run

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def backends() -> list[str]:
    """Triton, in its interpreter, has a process and tests of its own."""
    return [b for b in presto_kernels.available_backends()["renoise"] if b in ("cpu", "reference")]


compiled_only = pytest.mark.skipif("cpu" not in backends(), reason="the compiled CPU kernels are not here")


def label(case: Case) -> str:
    default = Case(case.op)
    return ",".join([case.op, *(f"{k}={v}" for k, v in vars(case).items() if k != "op" and v != getattr(default, k))])


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("case", cases(), ids=label)
def test_error_is_at_most_twice_that_of_pytorch(case, backend):
    with presto_kernels.use_backend(backend):
        check(judge(case))


@compiled_only
@pytest.mark.parametrize("instruction_set", _library.INSTRUCTION_SETS[1:])
def test_every_instruction_set(instruction_set):
    if _library.limit_instruction_set(instruction_set) != instruction_set:
        pytest.skip(f"this processor has no {instruction_set}")
    try:
        with presto_kernels.use_backend("cpu"):
            for case in cases():
                check(judge(case))
    finally:
        _library.limit_instruction_set(_library.INSTRUCTION_SETS[-1])


@pytest.mark.parametrize("backend", backends())
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_stride_and_dtype(backend, data):
    dtype = st.sampled_from(DTYPES)
    case = Case(
        data.draw(st.sampled_from(sorted(OPS))),
        shape=tuple(data.draw(st.lists(st.integers(1, 30), min_size=2, max_size=4))),
        dtype=data.draw(dtype),
        output_dtype=data.draw(dtype),
        sigma_dtype=data.draw(dtype),
        sigma_data=data.draw(st.sampled_from([0.5, 1.0, 0.3])),
        seed=data.draw(st.none() | st.integers(-(2**63), 2**64 - 1)),
        offset=data.draw(st.none() | st.integers(0, 2**32 - 1)),
        signal=data.draw(st.sampled_from([1.0, 0.5])),
        layout=data.draw(st.sampled_from(["plain", "permuted", "sliced", "columns", "broadcast"])),
        random=data.draw(st.integers(0, 999)),
    )
    with presto_kernels.use_backend(backend):
        check(judge(case))


@compiled_only
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_result_is_streamed_and_the_same(op, dtype):
    """Past 2 MiB the CPU kernels store past the cache, where samples and rows are whole lines; else as always."""
    for shape, layout in (((2, 5000, 128), "plain"), ((2, 5001, 129), "plain"), ((2, 4000, 160), "sliced")):
        case = Case(op, shape=shape, dtype=dtype, layout=layout)
        inputs = {name: t.detach() for name, t in case.inputs().items()}
        first = {name: t[:1] if name == "sigma" else t[:1, :40] for name, t in inputs.items()}
        with presto_kernels.use_backend("cpu"):
            whole, part = run(case, inputs), run(replace(case, shape=(1, 40, shape[2])), first)
        with presto_kernels.use_backend("reference"):
            expected = run(case, inputs)
        assert whole.nbytes >= 2 << 20 and torch.equal(whole[:1, :40], part)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(whole, expected, rtol=2 * eps, atol=1e-4)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("op", OPS)
def test_gradients_are_bitwise_the_same_on_every_run_and_thread_count(backend, op):
    case = Case(op, shape=(3, 301, 136), dtype=torch.bfloat16)
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
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (2, 5, 0), (0,)])
def test_empty_batches(backend, op, shape):
    case = Case(op, shape=shape)
    inputs = case.inputs()
    with presto_kernels.use_backend(backend):
        y = run(case, inputs)
        gradients = torch.autograd.grad(y.sum(), list(inputs.values()))
    assert y.shape == shape
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, inputs.values(), strict=True))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("op", OPS)
def test_only_the_gradients_that_are_wanted(backend, op):
    case = Case(op, shape=(2, 9, 40), dtype=torch.bfloat16, signal=0.5)
    full = case.inputs()
    with presto_kernels.use_backend(backend):
        expected = dict(
            zip(full, torch.autograd.grad(run(case, full).float().sin().sum(), list(full.values())), strict=True)
        )
        for name in full:
            some = {k: t.detach().requires_grad_(k == name) for k, t in full.items()}
            (got,) = torch.autograd.grad(run(case, some).float().sin().sum(), [some[name]])
            assert torch.equal(got, expected[name])


@pytest.mark.parametrize("backend", backends())
def test_the_gradient_may_come_in_any_layout(backend):
    for op in OPS:
        case = Case(op, shape=(2, 9, 24))
        inputs = case.inputs()
        with presto_kernels.use_backend(backend):
            got = torch.autograd.grad(run(case, inputs).sum(), list(inputs.values()))  # one number, expanded
            y = run(case, inputs)
            permuted = torch.ones(2, 24, 9).transpose(1, 2)
            for upstream in (torch.ones_like(y), permuted):
                gradients = torch.autograd.grad(y, list(inputs.values()), upstream, retain_graph=True)
                for a, b in zip(got, gradients, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("backend", backends())
def test_results_are_new_tensors(backend):
    x = torch.randn(2, 3, 8)
    with presto_kernels.use_backend(backend):
        for y in (
            presto_kernels.edm_denoise(x, x, torch.zeros(2)),
            presto_kernels.renoise(x, 0.0, seed=0, offset=0),
        ):
            assert torch.equal(y, x) and y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_noise_nothing_changes(backend, dtype):
    """At sigma 0, or at sigma_min where the boundary condition is set there, D is x; and sigma 0 adds no noise."""
    x, f = torch.randn(2, 5, 24).to(dtype), torch.randn(2, 5, 24).to(dtype)
    with presto_kernels.use_backend(backend):
        assert torch.equal(presto_kernels.edm_denoise(f, x, torch.zeros(2)), x)
        for sigma_min in (0.002, 0.1):
            assert torch.equal(presto_kernels.edm_denoise(f, x, torch.full((2,), sigma_min), sigma_min=sigma_min), x)
        for sigma in (0.0, torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16)):
            assert torch.equal(presto_kernels.renoise(x, sigma, seed=3, offset=1), x)
            expected = (0.3 * x.float()).to(dtype)
            assert torch.equal(presto_kernels.renoise(x, sigma, seed=3, offset=1, signal=0.3), expected)


@pytest.mark.parametrize("backend", backends())
def test_autocast_changes_nothing(backend):
    for op in OPS:
        case = Case(op)
        inputs = case.inputs()
        with presto_kernels.use_backend(backend):
            without = run(case, inputs)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(without, run(case, inputs))


@pytest.mark.parametrize("backend", backends())
def test_what_is_not_finite_stays_where_it_is(backend):
    x = torch.randn(2, 3, 40)
    x[0, 1, 5] = float("nan")
    sigma = torch.tensor([1.0, float("inf")])
    with presto_kernels.use_backend(backend):
        for y in (presto_kernels.renoise(x, 1.0, seed=0, offset=0), presto_kernels.edm_denoise(x, x, torch.ones(2))):
            assert y.isnan().sum() == 1 and y[0, 1, 5].isnan()
        assert presto_kernels.renoise(x, sigma, seed=0, offset=0)[0].isnan().sum() == 1


def test_float64_runs_on_the_reference():
    f, x = (torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    sigma = torch.tensor([0.4, 3.0], dtype=torch.float64, requires_grad=True)
    assert presto_kernels.explain("edm_denoise", f, x, sigma).backend == "reference"
    assert presto_kernels.explain("renoise", x, 1.0, seed=0, offset=0).backend == "reference"
    assert torch.autograd.gradcheck(lambda *t: presto_kernels.edm_denoise(*t, sigma_min=0.1), (f, x, sigma))
    assert torch.autograd.gradcheck(lambda x, s: presto_kernels.renoise(x, s, seed=1, offset=2, signal=0.5), (x, sigma))


@pytest.mark.slow
@compiled_only
def test_more_than_two_to_the_31_elements():
    """One row seen two million times, an output of 4.3 GB; the noise of the last elements is that of their counters."""
    rows = 2**21 + 1
    x = torch.randn(1, 1, 1024, dtype=torch.bfloat16).expand(1, rows, 1024)
    with torch.no_grad(), presto_kernels.use_backend("cpu"):
        y = presto_kernels.edm_denoise(x, x, torch.ones(1))
        assert y.numel() > 2**31 and torch.equal(y[0, 0], y[0, -1]) and torch.equal(y[0, 0], y[0, rows // 2])
        del y
        y = presto_kernels.renoise(x, 1.0, seed=4, offset=1)
    from presto_kernels.ops.sampler import reference

    counter = torch.arange(rows * 256 - 256, rows * 256)
    zero = torch.zeros_like(counter)
    w = reference.philox((counter, zero + 1, zero, zero), (zero + 4, zero))
    u = (w[0] >> 8).double().add(0.5) * 2.0**-24, (w[1] >> 8).double().add(0.5) * 2.0**-24
    first = (-2 * u[0].log()).sqrt() * (2 * torch.pi * u[1]).cos()
    assert torch.equal(y[0, -1, ::4], (x[0, -1, ::4].float() + first.float()).bfloat16())


def test_a_sample_too_large_for_its_counters_is_refused():
    x = torch.zeros(1).expand(2, 2**17, 2**17 + 1)
    with pytest.raises(ValueError, match=r"x0 must have at most 2\^34 elements a sample"):
        presto_kernels.renoise(x, 1.0, seed=0, offset=0)


F, X, SIGMA = torch.randn(2, 7, 8), torch.randn(2, 7, 8), torch.ones(2)
BAD_DENOISE = {
    "x is no tensor": ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
    "x is integer": ({"x": torch.ones(2, 7, 8, dtype=torch.int32)}, TypeError, "x must be float32.*got torch.int32"),
    "x is a scalar": ({"x": torch.ones(()), "model_output": torch.ones(())}, ValueError, r"x must be \[B, ...\]"),
    "F has another shape": (
        {"model_output": torch.ones(2, 7, 9)},
        ValueError,
        r"model_output must have x's shape \[2, 7, 8\], got \[2, 7, 9\]",
    ),
    "sigma is a number": ({"sigma": 1.0}, TypeError, "sigma must be a tensor, got float"),
    "sigma has another batch": ({"sigma": torch.ones(3)}, ValueError, r"sigma must be \[2\].*got \[3\]"),
    "sigma is elsewhere": ({"sigma": torch.ones(2, device="meta")}, ValueError, "sigma is on meta and x on cpu"),
    "sigma_data is 0": ({"sigma_data": 0.0}, ValueError, "sigma_data must be positive, got 0.0"),
    "sigma_data is NaN": ({"sigma_data": float("nan")}, ValueError, "sigma_data must be positive, got nan"),
    "sigma_data is a tensor": ({"sigma_data": torch.ones(())}, TypeError, "sigma_data must be a number, got Tensor"),
    "sigma_min is negative": ({"sigma_min": -0.1}, ValueError, "sigma_min must not be negative, got -0.1"),
}
BAD_RENOISE = {
    "x0 is no tensor": ({"x0": 1.0}, TypeError, "x0 must be a tensor, got float"),
    "sigma is text": ({"sigma": "1"}, TypeError, "sigma must be a number, got str"),
    "sigma is infinite": ({"sigma": float("inf")}, ValueError, "sigma must be finite, got inf"),
    "sigma has two dimensions": ({"sigma": torch.ones(2, 1)}, ValueError, r"sigma must be \[2\].*got \[2, 1\]"),
    "signal is a tensor": ({"signal": torch.ones(2)}, TypeError, "signal must be a number, got Tensor"),
    "seed is a float": ({"seed": 1.0}, TypeError, "seed must be an int or an int64 tensor, got float"),
    "seed is a bool": ({"seed": True}, TypeError, "seed must be an int or an int64 tensor, got bool"),
    "seed is too large": ({"seed": 2**64}, ValueError, r"seed must lie in \[-2\^63, 2\^64\), got 18446744073709551616"),
    "seed is int32": ({"seed": torch.ones(2, dtype=torch.int32)}, TypeError, "int64 tensor, got torch.int32"),
    "seed is a scalar": ({"seed": torch.tensor(1)}, ValueError, r"seed must be \[2\].*got \[\]"),
    "seed is elsewhere": (
        {"seed": torch.ones(2, dtype=torch.int64, device="meta")},
        ValueError,
        "seed is on meta and x0 on cpu",
    ),
    "offset is negative": ({"offset": -1}, ValueError, r"offset must lie in \[0, 2\^32\), got -1"),
    "offset is too large": ({"offset": 2**32}, ValueError, r"offset must lie in \[0, 2\^32\)"),
    "offset has another batch": ({"offset": torch.arange(3)}, ValueError, r"offset must be \[2\].*got \[3\]"),
}


@pytest.mark.parametrize("name", BAD_DENOISE)
def test_bad_arguments_of_edm_denoise_are_named(name):
    change, error, message = BAD_DENOISE[name]
    arguments = {"model_output": F, "x": X, "sigma": SIGMA} | change
    with pytest.raises(error, match=f"edm_denoise: {message}"):
        presto_kernels.edm_denoise(**arguments)
    with pytest.raises(error):
        presto_kernels.explain("edm_denoise", **arguments)


@pytest.mark.parametrize("name", BAD_RENOISE)
def test_bad_arguments_of_renoise_are_named(name):
    change, error, message = BAD_RENOISE[name]
    arguments = {"x0": X, "sigma": 1.0, "seed": 0, "offset": 0} | change
    with pytest.raises(error, match=f"renoise: .*{message}"):
        presto_kernels.renoise(**arguments)
    with pytest.raises(error):
        presto_kernels.explain("renoise", **arguments)


@pytest.mark.parametrize("op", OPS)
def test_transforms_are_refused_by_name(op):
    case = Case(op)
    inputs = {k: t.detach() for k, t in case.inputs().items()}
    name = "x0" if op == "renoise" else "x"
    rest = {k: t for k, t in inputs.items() if k != name}
    call = lambda x: OPS[op](**{name: x}, **rest, **case.options())  # noqa: E731
    with pytest.raises(NotImplementedError, match=f"{op}: torch.func transforms"):
        torch.func.vmap(call)(inputs[name].unsqueeze(0))
    with pytest.raises(NotImplementedError, match=f"{op}: "):
        torch.func.jvp(call, (inputs[name],), (inputs[name],))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"{op}: forward-mode"):
        call(torch.autograd.forward_ad.make_dual(inputs[name], inputs[name]))


@compiled_only
def test_gradients_are_first_order_only():
    x = torch.randn(2, 7, 8, requires_grad=True)
    for y in (presto_kernels.edm_denoise(F, x, SIGMA), presto_kernels.renoise(x, SIGMA, seed=0, offset=0, signal=0.5)):
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


def test_every_argument_is_tested():
    """A new argument that the cases do not know would go untested."""
    for op, function in OPS.items():
        assert set(inspect.signature(function).parameters) == set(TENSORS[op]) | set(Case(op).options())
