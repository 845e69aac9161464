"""The AdaLN family against float64, on every implementation that runs on this machine's CPU tensors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import presto_kernels
from presto_kernels import _library
from presto_kernels.testing import check
from presto_kernels.testing.modulation import OPS, TENSORS, Case, cases, judge, run

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def backends() -> list[str]:
    """Triton, in its interpreter, has a process and tests of its own."""
    return [b for b in presto_kernels.available_backends()["adaln_modulate"] if b in ("cpu", "reference")]


def label(case: Case) -> str:
    default = Case(case.op)
    return ",".join([case.op, *(f"{k}={v}" for k, v in vars(case).items() if k != "op" and v != getattr(default, k))])


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("case", cases(), ids=label)
def test_error_is_at_most_twice_that_of_pytorch(case, backend):
    with presto_kernels.use_backend(backend):
        check(judge(case))


@pytest.mark.skipif("cpu" not in backends(), reason="the compiled CPU kernels are not here")
@pytest.mark.parametrize("instruction_set", _library.INSTRUCTION_SETS[1:])
def test_every_instruction_set(instruction_set):
    """The sets differ in vector width, tails and how bf16 is rounded."""
    if _library.limit_instruction_set(instruction_set) != instruction_set:
        pytest.skip(f"this processor has no {instruction_set}")
    try:
        with presto_kernels.use_backend("cpu"):
            for case in cases():
                check(judge(case))
            x = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.0e38, float("inf"), float("nan"), 2**-130] * 5)
            x = x.reshape(1, 5, 7)
            y = presto_kernels.gated_residual(torch.zeros_like(x, dtype=torch.bfloat16), x, None)
    finally:
        _library.limit_instruction_set(_library.INSTRUCTION_SETS[-1])
    normal = x.abs() != 2**-130  # the hardware's conversion flushes denormals
    assert torch.equal(y[normal].nan_to_num(7.0), x.bfloat16()[normal].nan_to_num(7.0))


@pytest.mark.parametrize("backend", backends())
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_stride_and_dtype(backend, data):
    layouts = st.sampled_from([None, "D", "1D", "BD", "B1D", "1ND", "BND", "chunk"])
    affine = st.sampled_from([None, "D", "BD", "B1D"])
    dtype = st.sampled_from(DTYPES)
    case = Case(
        data.draw(st.sampled_from(sorted(OPS))),
        batch=data.draw(st.integers(1, 4)),
        tokens=data.draw(st.integers(1, 70)),
        dim=data.draw(st.integers(8, 300)),
        dtype=data.draw(dtype),
        branch_dtype=data.draw(dtype),
        modulation_dtype=data.draw(dtype),
        gate=data.draw(layouts),
        scale=data.draw(layouts),
        shift=data.draw(layouts),
        weight=data.draw(affine),
        bias=data.draw(affine),
        alpha=data.draw(st.sampled_from([(), (1,)])),
        residual2=data.draw(layouts),
        norm=data.draw(st.sampled_from(["layer", "rms", "dyt"])),
        gate_fn=data.draw(st.sampled_from(["identity", "sigmoid_one_minus"])),
        x_layout=data.draw(st.sampled_from(["plain", "permuted", "sliced"])),
        seed=data.draw(st.integers(0, 999)),
    )
    with presto_kernels.use_backend(backend):
        check(judge(case))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["layer", "dyt"])
def test_the_seam_is_the_sum_of_its_parts_bit_for_bit(backend, norm, dtype):
    """h is the norm of x' as stored, not of what x' was before rounding."""
    case = Case("gated_residual_adaln", tokens=33, dim=200, dtype=dtype, scale="BD", norm=norm, residual2="BND")
    inputs = case.inputs()
    x, branch, gate, scale, shift, residual2 = (
        inputs[k] for k in ("x", "branch", "gate", "scale", "shift", "residual2")
    )
    normed = {"norm": norm, "alpha": inputs["alpha"]}
    with presto_kernels.use_backend(backend), torch.no_grad():
        x_new, h = presto_kernels.gated_residual_adaln(x, branch, gate, scale, shift, **normed, residual2=residual2)
        assert torch.equal(x_new, presto_kernels.gated_residual(x, branch, gate, residual2=residual2))
        assert torch.equal(h, presto_kernels.adaln_modulate(x_new, scale, shift, **normed))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("norm", ["layer", "dyt"])
def test_gradients_are_bitwise_the_same_on_every_run_and_thread_count(backend, op, norm):
    case = Case(op, batch=3, tokens=301, dim=136, dtype=torch.bfloat16, gate="D", weight="D", bias="D", norm=norm)
    # Half of alpha's gradient would hide in bf16.
    case = replace(case, modulation_dtype=torch.float32, residual2="D") if norm == "dyt" else case
    if op == "gated_residual":
        case = replace(case, weight=None, bias=None)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            inputs = case.inputs()
            with presto_kernels.use_backend(backend):
                outputs = run(case, inputs)
                loss = sum(y.float().square().sum() for y in outputs)
                seen.append([*outputs, *torch.autograd.grad(loss, [t for t in inputs.values() if t is not None])])
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("batch, tokens", [(0, 5), (2, 0)])
def test_empty_batches(backend, op, batch, tokens):
    plain = Case(op, batch=batch, tokens=tokens, gate="D", scale="D", shift="D")
    for case in (plain, replace(plain, norm="dyt", residual2="D"), replace(plain, norm="dyt", residual2="BND")):
        inputs = case.inputs()
        with presto_kernels.use_backend(backend):
            outputs = run(case, inputs)
            leaves = [t for t in inputs.values() if t is not None]
            gradients = torch.autograd.grad(sum(y.sum() for y in outputs), leaves)
        assert all(y.shape == (batch, tokens, 64) for y in outputs)
        assert all(not g.any() for g in gradients)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("extra", [{}, {"norm": "dyt", "residual2": "BD"}, {"norm": "dyt", "residual2": "BND"}])
def test_only_the_gradients_that_are_wanted(backend, extra):
    """Every subset of inputs may be frozen, and every subset of outputs unused."""
    case = Case("gated_residual_adaln", tokens=9, weight="D", bias="D", **extra)
    full = {name: t for name, t in case.inputs().items() if t is not None}

    def run(case, inputs):
        return presto_kernels.gated_residual_adaln(**inputs, **case.options())

    with presto_kernels.use_backend(backend):
        for used in ((0,), (1,), (0, 1)):
            outputs = run(case, full)
            expected = dict(
                zip(
                    full,
                    torch.autograd.grad(
                        sum(outputs[i].sin().sum() for i in used), list(full.values()), materialize_grads=True
                    ),
                    strict=True,
                )
            )
            for name in full:
                some = {k: t.detach().requires_grad_(k == name) for k, t in full.items()}
                outputs = run(case, some)
                loss = sum(outputs[i].sin().sum() for i in used)
                if not loss.requires_grad:  # x' does not depend on what only h uses
                    assert not expected[name].any()
                    continue
                (got,) = torch.autograd.grad(loss, [some[name]], materialize_grads=True)
                torch.testing.assert_close(got, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", backends())
def test_results_are_new_tensors(backend):
    x = torch.randn(2, 3, 8)
    with presto_kernels.use_backend(backend):
        for y in (
            presto_kernels.gated_residual(x, torch.zeros_like(x), None),
            presto_kernels.adaln_modulate(x, None, None),
            *presto_kernels.gated_residual_adaln(x, torch.zeros_like(x), None, None, None),
        ):
            assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@pytest.mark.parametrize("backend", backends())
def test_autocast_changes_nothing(backend):
    inputs = Case("gated_residual_adaln").inputs()
    with presto_kernels.use_backend(backend):
        without = presto_kernels.gated_residual_adaln(**inputs)
        with torch.autocast("cpu", torch.bfloat16):
            within_it = presto_kernels.gated_residual_adaln(**inputs)
    assert all(torch.equal(a, b) for a, b in zip(without, within_it, strict=True))


def test_nan_and_infinity_stay_in_their_row():
    x = torch.randn(1, 3, 40, dtype=torch.bfloat16)
    x[0, 1, 5] = float("nan")
    with torch.no_grad():
        h = presto_kernels.adaln_modulate(x, None, None)
    assert h[0, 1].isnan().all() and h[0, [0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [17, 40, 64])
def test_what_is_not_finite_stays_in_its_sample(dtype, dim):
    """A width that fills no whole vector leaves lanes over; they must not carry one sample's modulation to the next."""
    inputs = Case("gated_residual_adaln", batch=2, tokens=3, dim=dim, dtype=dtype, gate="BD", scale="BD").inputs()
    with torch.no_grad():
        inputs["gate"][0], inputs["scale"][0] = float("nan"), float("inf")
    x_new, h = presto_kernels.gated_residual_adaln(**inputs)
    gradients = torch.autograd.grad((x_new[1] * h[1]).sum(), [inputs["x"], inputs["branch"]])
    assert x_new[1].isfinite().all() and h[1].isfinite().all()
    assert all(gradient[1].isfinite().all() for gradient in gradients)


def test_float64_runs_on_the_reference():
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)
    assert presto_kernels.explain("adaln_modulate", x, scale, None).backend == "reference"
    assert torch.autograd.gradcheck(lambda a, b: presto_kernels.adaln_modulate(a, b, None), (x, scale))
    alpha = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)

    def seam(x, scale, alpha):
        return presto_kernels.gated_residual_adaln(x, x, scale, None, scale, alpha=alpha, norm="dyt", residual2=scale)

    assert torch.autograd.gradcheck(seam, (x, scale, alpha))


@pytest.mark.slow
@pytest.mark.skipif("cpu" not in backends(), reason="the compiled CPU kernels are not here")
def test_more_than_two_to_the_31_elements():
    """Outputs of 4.3 GB; the input is one row seen two million times."""
    tokens = 2**21 + 1
    x = torch.randn(1, 1, 1024, dtype=torch.bfloat16).expand(1, tokens, 1024)
    with torch.no_grad(), presto_kernels.use_backend("cpu"):
        h = presto_kernels.adaln_modulate(x, None, None)
    assert h.numel() > 2**31
    assert torch.equal(h[0, 0], h[0, -1]) and torch.equal(h[0, 0], h[0, tokens // 2])


BAD = {
    "x is not a tensor": (lambda a: a | {"x": [1.0]}, TypeError, "x must be a tensor, got list"),
    "x is integer": (lambda a: a | {"x": a["x"].detach().int()}, TypeError, "x must be float32.*got torch.int32"),
    "x is 2-D": (lambda a: a | {"x": a["x"][0]}, ValueError, r"x must be \[B, N, D\].*got \[7, 64\]"),
    "scale has a wrong width": (
        lambda a: a | {"scale": torch.ones(2, 63)},
        ValueError,
        r"scale must be \[64\].*got \[2, 63\]",
    ),
    "scale has a wrong batch": (lambda a: a | {"scale": torch.ones(3, 64)}, ValueError, r"scale.*got \[3, 64\]"),
    "scale is a number": (lambda a: a | {"scale": 1.0}, TypeError, "scale must be a tensor, got float"),
    "scale is on another device": (
        lambda a: a | {"scale": torch.ones(2, 64, device="meta")},
        ValueError,
        "scale is on meta and x on cpu",
    ),
    "weight by token": (lambda a: a | {"weight": torch.ones(2, 7, 64)}, ValueError, r"weight must be \[64\]"),
    "norm is unknown": (
        lambda a: a | {"norm": "batch"},
        ValueError,
        "norm must be 'layer', 'rms' or 'dyt', got 'batch'",
    ),
    "norm is None": (lambda a: a | {"norm": None}, ValueError, "norm must be 'layer', 'rms' or 'dyt', got None"),
    "dyt without alpha": (lambda a: a | {"norm": "dyt"}, ValueError, r"norm='dyt' needs alpha, a tensor \[1\] or \[\]"),
    "alpha without dyt": (
        lambda a: a | {"alpha": torch.ones(1)},
        ValueError,
        "alpha belongs to norm='dyt' and norm is 'layer'",
    ),
    "alpha is a number": (lambda a: a | {"norm": "dyt", "alpha": 0.5}, TypeError, "alpha must be a tensor, got float"),
    "alpha is a row": (
        lambda a: a | {"norm": "dyt", "alpha": torch.ones(64)},
        ValueError,
        r"alpha must be \[1\] or \[\], got \[64\]",
    ),
    "alpha is [1, 1]": (lambda a: a | {"norm": "dyt", "alpha": torch.ones(1, 1)}, ValueError, r"got \[1, 1\]"),
    "eps is negative": (lambda a: a | {"eps": -1e-6}, ValueError, "eps must be a number >= 0, got -1e-06"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    change, error, message = BAD[name]
    arguments = change(dict(Case("adaln_modulate").inputs()))
    with pytest.raises(error, match=message):
        presto_kernels.adaln_modulate(**arguments)
    with pytest.raises(error):
        presto_kernels.explain("adaln_modulate", **arguments)


def test_bad_branches_and_gates_are_named():
    x = torch.randn(2, 7, 64)
    with pytest.raises(ValueError, match=r"residual2 must be \[64\], .* or \[2 or 1, 7 or 1, 64\].*got \[2, 6, 64\]"):
        presto_kernels.gated_residual(x, x, None, residual2=torch.randn(2, 6, 64))
    with pytest.raises(TypeError, match=r"residual2 must be float32.*got torch.int64"):
        presto_kernels.gated_residual_adaln(x, x, None, None, None, residual2=torch.ones(64, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"branch must have x's shape \[2, 7, 64\], got \[2, 6, 64\]"):
        presto_kernels.gated_residual(x, torch.randn(2, 6, 64), None)
    with pytest.raises(TypeError, match="branch must be a tensor, got NoneType"):
        presto_kernels.gated_residual(x, None, None)
    with pytest.raises(ValueError, match="gate_fn must be 'identity' or 'sigmoid_one_minus', got 'tanh'"):
        presto_kernels.gated_residual(x, x, None, gate_fn="tanh")


@pytest.mark.parametrize("op", OPS)
def test_transforms_are_refused_by_name(op):
    case = Case(op)
    inputs = {k: None if t is None else t.detach() for k, t in case.inputs().items()}
    rest = {k: t for k, t in inputs.items() if k != "x"}
    call = lambda x: OPS[op](x, **rest, **case.options())  # noqa: E731
    with pytest.raises(NotImplementedError, match=f"{op}: torch.func transforms"):
        torch.func.vmap(call)(inputs["x"].unsqueeze(0))
    with pytest.raises(NotImplementedError, match=f"{op}: "):
        torch.func.jvp(call, (inputs["x"],), (inputs["x"],))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"{op}: forward-mode"):
        call(torch.autograd.forward_ad.make_dual(inputs["x"], inputs["x"]))


@pytest.mark.skipif("cpu" not in backends(), reason="the compiled CPU kernels are not here")
def test_gradients_are_first_order_only():
    x = torch.randn(1, 3, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(presto_kernels.adaln_modulate(x, None, None).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_every_tensor_argument_is_tested():
    """A new argument that the cases do not know would go untested."""
    import inspect

    for op, function in OPS.items():
        parameters = set(inspect.signature(function).parameters) - {"norm", "eps", "gate_fn"}
        assert parameters == set(TENSORS[op])
