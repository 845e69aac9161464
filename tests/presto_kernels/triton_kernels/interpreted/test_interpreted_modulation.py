"""The Triton kernels of the AdaLN family, run by Triton's interpreter on CPU tensors."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import presto_kernels
from presto_kernels.ops.modulation import operators, triton_jit, triton_kernels
from presto_kernels.testing import check
from presto_kernels.testing.modulation import Case, cases, judge, run

SEAM = Case("gated_residual_adaln", dtype=torch.bfloat16)
EXTRA = (
    # one sample and several programs, each with several groups of rows; more programs than are added at a time
    replace(SEAM, batch=1, tokens=150, dim=40, weight="D", bias="BD"),
    replace(SEAM, batch=35, tokens=2, dim=16, gate="1D", scale="D", weight="D", bias="D"),
    # modulations of every shape in every place
    replace(SEAM, batch=3, dim=24, gate="1ND", scale="1ND", shift="D", weight="B1D", bias="1D"),
    replace(SEAM, batch=3, dim=24, gate="BND", scale="B1D", shift="BND", weight="BD", bias="D"),
    replace(SEAM, batch=1, dim=24, gate="1ND", scale="BND", shift="1ND", weight="1D", bias="D", norm="rms"),
    replace(SEAM, dim=24, gate=None, scale="chunk", shift=None, weight=None, bias="D"),
    replace(SEAM, dim=24, gate="chunk", scale=None, shift="chunk", gate_fn="sigmoid_one_minus", norm="rms"),
    # residual2 of every shape; alpha's sum over several programs, and beside gradients as narrow as it
    *(replace(SEAM, batch=3, dim=24, residual2=layout) for layout in ("D", "1D", "B1D", "1ND", "BND")),
    replace(SEAM, batch=1, tokens=150, dim=40, norm="dyt", alpha=(), weight="D", bias="D", residual2="D"),
    replace(SEAM, batch=3, tokens=5, dim=1, norm="dyt", weight="D", residual2="BD"),
)


@pytest.fixture(autouse=True)
def on_triton():
    with presto_kernels.use_backend("triton"):
        yield


def shortened(case: Case) -> Case:
    """The interpreter takes some 0.1 s a program: wide rows once and few, odd lengths stay odd."""
    return replace(case, tokens=min(case.tokens, 3 if case.dim >= 1000 else 19))


def chosen() -> list[Case]:
    """The seam has all the code of the other two ops, and bf16 rounds most: all of that, and samples of the rest."""
    every = [shortened(case) for case in cases()]
    full = [case for case in every if case.op == SEAM.op and case.dtype == torch.bfloat16]
    rest = [case for case in every if case not in full and case.dim < 1000]
    return [*full, *rest[::4], *EXTRA]


@pytest.mark.parametrize("case", chosen(), ids=str)
def test_error_is_at_most_twice_plain_pytorch(case):
    check(judge(case))


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.builds(
        Case,
        op=st.sampled_from(["adaln_modulate", "gated_residual", "gated_residual_adaln"]),
        batch=st.integers(1, 3),
        tokens=st.integers(1, 9),
        dim=st.integers(2, 70),
        dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        branch_dtype=st.sampled_from([None, torch.float32, torch.float16]),
        modulation_dtype=st.sampled_from([None, torch.float32, torch.bfloat16]),
        gate=st.sampled_from([None, "D", "BD", "1ND", "BND", "chunk"]),
        scale=st.sampled_from([None, "1D", "B1D", "BND"]),
        weight=st.sampled_from([None, "D", "B1D"]),
        residual2=st.sampled_from([None, "BD", "BND"]),
        norm=st.sampled_from(["layer", "rms", "dyt"]),
        gate_fn=st.sampled_from(["identity", "sigmoid_one_minus"]),
        x_layout=st.sampled_from(["plain", "permuted", "sliced"]),
        eps=st.just(1e-3),
        seed=st.integers(0, 9),
    )
)
def test_any_call(case):
    check(judge(case))


def tensors(case: Case) -> dict:
    """The operator's nine inputs by name, None where the op has none."""
    names = ("x", "branch", "gate", "scale", "shift", "weight", "bias", "alpha", "residual2")
    given = case.inputs()
    return {name: None if given.get(name) is None else given[name].detach() for name in names}


FULL = replace(SEAM, batch=2, tokens=11, dim=40, weight="D", bias="BD", scale="BND", norm="dyt", residual2="BD")


def forward_and_backward(case: Case, needs: int = 511, use=("x", "h")) -> list[torch.Tensor]:
    inputs, norm = tensors(case), operators.NORMS[case.norm]
    torch.manual_seed(1)
    x_new, h, stats = torch.ops.presto_kernels.seam_triton(*inputs.values(), norm, 0, 1e-6)
    grads = [torch.randn_like(h) if name in use else None for name in ("x", "h")]
    given = [inputs[name] for name in list(inputs)[1:]]
    return [
        x_new,
        h,
        *torch.ops.presto_kernels.seam_backward_triton(*grads, x_new, stats, *given, norm, 0, needs),
    ]


def test_gradients_are_bitwise_the_same_on_every_run():
    first, second = forward_and_backward(FULL), forward_and_backward(FULL)
    assert len(first) == 11
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_a_gradient_does_not_depend_on_which_others_are_wanted():
    every = forward_and_backward(FULL)[2:]
    for bit in range(9):
        alone = forward_and_backward(FULL, needs=1 << bit)[2:]
        assert [t.numel() > 0 for t in alone] == [i == bit for i in range(9)]
        assert torch.equal(alone[bit], every[bit])


def test_an_output_that_is_not_used_gives_no_gradient():
    dx, dbranch, dgate, dscale, dshift, dweight, dbias, dalpha, dresidual2 = forward_and_backward(FULL, use=("x",))[2:]
    assert dx.any() and dbranch.any() and dgate.any() and dresidual2.any()
    assert not any(t.any() for t in (dscale, dshift, dweight, dbias, dalpha))
    every = forward_and_backward(FULL, use=("h",))[2:]
    assert all(t.any() for t in every)


@pytest.mark.parametrize("shape", [(0, 5, 24), (2, 0, 24)])
@pytest.mark.parametrize("op", ["adaln_modulate", "gated_residual", "gated_residual_adaln"])
def test_empty(op, shape):
    case = Case(op, batch=shape[0], tokens=shape[1], dim=shape[2], weight="D", gate="D", scale="1D", norm="dyt")
    case = replace(case, residual2="BND")
    inputs = case.inputs()
    outputs = run(case, inputs)
    assert all(y.shape == shape for y in outputs)
    leaves = [t for t in inputs.values() if t is not None]
    for leaf, grad in zip(leaves, torch.autograd.grad([y.sum() for y in outputs], leaves), strict=True):
        assert grad.shape == leaf.shape and not grad.any()


@pytest.mark.parametrize("norm", ["layer", "dyt"])
def test_h_is_the_norm_of_x_as_stored(norm):
    """Bitwise what adaln_modulate makes of the x' that was written."""
    case = replace(SEAM, tokens=5, dim=72, norm=norm, residual2="BND")
    inputs = case.inputs()
    x_new, h = run(case, inputs)
    again = presto_kernels.adaln_modulate(x_new, inputs["scale"], inputs["shift"], alpha=inputs["alpha"], norm=norm)
    assert torch.equal(h, again)


def test_gradients_that_come_expanded_and_rows_that_are_prefixes():
    x = torch.randn(3, 9, 40, requires_grad=True)
    scale = torch.randn(3, 40, requires_grad=True)
    h = presto_kernels.adaln_modulate(x[:2], scale[:2], None)
    got = torch.autograd.grad(h.sum(), (x, scale))
    with presto_kernels.use_backend("reference"):
        right = torch.autograd.grad(presto_kernels.adaln_modulate(x[:2], scale[:2], None).sum(), (x, scale))
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_opcheck_on_permuted_layouts():
    plain = replace(SEAM, dim=16, tokens=5, dtype=torch.float32, x_layout="permuted", gate="BND", weight="D")
    for case, norm, needs in ((plain, 2, 63), (replace(plain, norm="dyt", residual2="BND", alpha=()), 3, 511 - 64)):
        inputs = list(tensors(case).values())
        torch.library.opcheck(torch.ops.presto_kernels.seam_triton, (*inputs, norm, 0, 1e-6))
        x_new, h, stats = torch.ops.presto_kernels.seam_triton(*inputs, norm, 1, 1e-6)
        permuted = h.transpose(1, 2).contiguous().transpose(1, 2)
        torch.library.opcheck(
            torch.ops.presto_kernels.seam_backward_triton, (x_new, permuted, x_new, stats, *inputs[1:], norm, 1, needs)
        )


def test_compiles_as_one_graph_for_every_odd_length():
    def seam(x, branch, modulation):
        gate, scale, shift = modulation.chunk(3, dim=-1)
        x_new, h = presto_kernels.gated_residual_adaln(x, branch, gate, scale, shift)
        return x_new.square().sum() + h.sin().sum()

    compiled = torch.compile(seam, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (5, 3, 7, 9):
        leaves = [torch.randn(s).requires_grad_() for s in ((2, tokens, 16), (2, tokens, 16), (2, 48))]
        with torch.compiler.set_stance("default" if tokens == 5 else "fail_on_recompile"):
            got = torch.autograd.grad(compiled(*leaves), leaves)
        for a, b in zip(got, torch.autograd.grad(seam(*leaves), leaves), strict=True):
            assert torch.equal(a, b)


def test_what_is_too_large_is_refused_by_name():
    wide = torch.zeros(1, 1, triton_kernels.MAX_DIM + 1)
    with pytest.raises(ValueError, match="wider than 8192"):
        presto_kernels.adaln_modulate(wide, None, None)
    with presto_kernels.use_backend():
        assert presto_kernels.explain("adaln_modulate", wide, None, None).backend != "triton"
    many = torch.zeros(1, 1, 8).expand(2**16, 2**16, 8)
    with pytest.raises(ValueError, match="rows"):
        torch.ops.presto_kernels.seam_triton(many, *[None] * 8, operators.NORMS["layer"], 0, 1e-6)


# Kernels that are wrong, each by one line, and a call that shows it.
BROKEN = {
    "variance not of the centred row": (
        "seam_forward",
        "rstd = tl.rsqrt(tl.sum(value * value,",
        "rstd = tl.rsqrt(tl.sum((value + mean) * (value + mean),",
        Case("adaln_modulate", tokens=5, offset=3.0),
    ),
    "gate dropped": (
        "seam_forward",
        "update *= _gate(_load(gate, b, n, gate_batch, gate_row, cols, mask, VECTOR), GATE_FN)",
        "pass",
        Case("gated_residual", tokens=5),
    ),
    "masked columns in the variance": (
        "seam_forward",
        "value = tl.where(mask, value - mean, 0.0)",
        "value = value - mean",
        Case("adaln_modulate", tokens=5, dim=40, offset=3.0),
    ),
    "norm of x, not x'": (
        "seam_forward",
        "value = round_to(value + update, x_new.dtype.element_ty).to(tl.float32)",
        "stored = round_to(value + update, x_new.dtype.element_ty).to(tl.float32)",
        Case("gated_residual_adaln", tokens=5),
    ),
    "mean(dy) forgotten": (
        "seam_backward_rows",
        "inner -= tl.sum(dh, axis=1, keep_dims=True) / D",
        "pass",
        Case("adaln_modulate", tokens=5),
    ),
    "gate's derivative forgotten": (
        "seam_backward_rows",
        "dg *= g * (g - 1.0)",
        "pass",
        Case("gated_residual", tokens=5, gate_fn="sigmoid_one_minus"),
    ),
    "last rows of a sample dropped": (
        "seam_backward_rows",
        "mask = (n < tokens) & (cols < D)",
        "mask = (n < tokens - 1) & (cols < D)",
        Case("gated_residual_adaln", tokens=5),
    ),
    "dyt: the slope of tanh forgotten": (
        "seam_backward_rows",
        "inner = dh * tanh_slope(value * a)",
        "inner = dh",
        Case("adaln_modulate", tokens=5, norm="dyt"),
    ),
    "dyt: alpha's gradient is summed of y, not of x'": (
        "seam_backward_rows",
        "tl.reshape(inner * value, (GROUP",
        "tl.reshape(inner * y, (GROUP",
        Case("adaln_modulate", tokens=5, norm="dyt"),
    ),
    "residual2 dropped": (
        "seam_forward",
        "update += _load(residual2, b, n, residual2_batch, residual2_row, cols, mask, VECTOR)",
        "pass",
        Case("gated_residual", tokens=5, residual2="BD"),
    ),
    "residual2's gradient forgets what comes through the norm": (
        "seam_backward_rows",
        "residual2_sum = _collect(residual2_sum, d,",
        "residual2_sum = _collect(residual2_sum, d - rstd * inner,",
        Case("gated_residual_adaln", tokens=5, residual2="BD"),
    ),
    "last sums dropped": (
        "seam_backward_sums",
        "while done < terms:",
        "while done + TERMS < terms:",
        Case("gated_residual_adaln", tokens=5),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_tolerance_catches(name, dtype, tmp_path, monkeypatch):
    kernel, right, wrong, case = BROKEN[name]
    case = replace(case, dtype=dtype)
    check(judge(case))
    monkeypatch.setattr(triton_kernels, kernel, getattr(mutant(tmp_path, right, wrong), kernel))
    with pytest.raises(AssertionError, match="BEYOND"):
        check(judge(case))


def test_bitwise_equality_catches_a_norm_of_the_unrounded_x(tmp_path, monkeypatch):
    broken = mutant(
        tmp_path,
        "value = round_to(value + update, x_new.dtype.element_ty).to(tl.float32)\n",
        "value = value + update\n",
    )
    monkeypatch.setattr(triton_kernels, "seam_forward", broken.seam_forward)
    with pytest.raises(AssertionError):
        test_h_is_the_norm_of_x_as_stored("layer")


def mutant(folder, right: str, wrong: str):
    """The kernels with one line replaced."""
    with open(triton_jit.__file__) as file:
        source = file.read()
    assert source.count(right) == 1, f"the kernels have changed: {right!r} occurs {source.count(right)} times"
    source = source.replace(right, wrong)
    if wrong.startswith("stored ="):
        source = source.replace("_store(x_new, row, value,", "_store(x_new, row, stored,")
    path = folder / "mutant.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("mutant", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
