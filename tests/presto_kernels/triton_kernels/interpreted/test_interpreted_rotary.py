"""The Triton kernels of ``qk_norm_rope``, run by Triton's interpreter on CPU tensors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import presto_kernels
from presto_kernels.ops.rotary import operators, triton_kernels
from presto_kernels.testing import check
from presto_kernels.testing.rotary import Case, cases, gradients, judge, run

BF16 = torch.bfloat16
FULL = Case(tokens=5, heads=5, k_tokens=7, k_heads=2, rotary=32, bias=True, dtype=BF16)
DYT = replace(FULL, norm="dyt")


@pytest.fixture(autouse=True)
def on_triton():
    with presto_kernels.use_backend("triton"):
        yield


def chosen() -> list[Case]:
    """bf16 rounds most: all of its cases, and samples of the rest; odd lengths stay odd."""
    every = [replace(case, tokens=min(case.tokens, 9)) for case in cases()]
    full = [case for case in every if case.dtype == BF16]
    return [*full, *[case for case in every if case.dtype != BF16][::5]]


def label(case: Case) -> str:
    return ",".join(f"{k}={v}" for k, v in vars(case).items() if v != getattr(Case(), k)) or "base"


@pytest.mark.parametrize("case", chosen(), ids=label)
def test_error_is_at_most_twice_plain_pytorch(case):
    check(judge(case))


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.builds(
        Case,
        batch=st.integers(1, 3),
        tokens=st.integers(1, 9),
        heads=st.integers(1, 5),
        dim=st.integers(6, 70),
        rotary=st.sampled_from([0, 2, 6]),
        k_tokens=st.sampled_from([None, 3]),
        k_heads=st.sampled_from([None, 1]),
        dtype=st.sampled_from([torch.float32, BF16, torch.float16]),
        k_dtype=st.sampled_from([None, torch.float32, torch.float16]),
        affine_dtype=st.sampled_from([None, torch.float32, BF16]),
        weight=st.booleans(),
        bias=st.booleans(),
        norm=st.sampled_from(["rms", "layer", "l2", "dyt", None]),
        interleaved=st.booleans(),
        layout=st.sampled_from(["plain", "fused", "permuted", "strided"]),
        eps=st.just(1e-3),
        seed=st.integers(0, 9),
    )
)
def test_any_call(case):
    check(judge(case))


def forward_and_backward(case: Case, needs: int = 255) -> list[torch.Tensor]:
    inputs = {name: None if t is None else t.detach() for name, t in case.inputs().items()}
    settings = operators.NORMS[case.norm], case.eps, case.interleaved
    outputs = torch.ops.presto_kernels.qk_norm_rope_triton(*inputs.values(), *settings)
    grads = [torch.randn_like(y, generator=torch.Generator().manual_seed(i)) for i, y in enumerate(outputs)]
    return [
        *outputs,
        *torch.ops.presto_kernels.qk_norm_rope_backward_triton(*grads, *inputs.values(), *settings, needs),
    ]


def test_gradients_are_bitwise_the_same_on_every_run():
    first, second = forward_and_backward(DYT), forward_and_backward(DYT)
    assert len(first) == 10 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_gradient_does_not_depend_on_which_others_are_wanted():
    every = forward_and_backward(DYT)[2:]
    for bit in range(8):
        alone = forward_and_backward(DYT, needs=1 << bit)[2:]
        assert [t.numel() > 0 for t in alone] == [i == bit for i in range(8)]
        assert torch.equal(alone[bit], every[bit])


def test_programs_that_walk_several_groups(monkeypatch):
    """Of long calls a program takes a run of groups, and the last may be short."""
    monkeypatch.setattr(triton_kernels, "KNOBS", replace(triton_kernels.KNOBS, max_programs=3))
    for case in (FULL, DYT):
        check(judge(replace(case, batch=1, tokens=31, dim=128, rotary=128)))


@pytest.mark.parametrize("empty", [{"batch": 0}, {"tokens": 0}, {"k_tokens": 0}, {"heads": 0}])
def test_empty(empty):
    case = replace(DYT, **empty)
    inputs = case.inputs()
    outputs = run(case, inputs)
    found = gradients(outputs, inputs, outputs)
    for side, y in zip("qk", outputs, strict=True):
        assert y.shape == inputs[side].shape
        if not y.numel():
            assert not any(found[name].any() for name in (side, f"{side}_weight", f"{side}_bias", f"{side}_alpha"))


def test_an_output_that_is_not_used_gives_no_gradient():
    inputs = FULL.inputs()
    q, _ = run(FULL, inputs)
    got = torch.autograd.grad(q.sum(), [inputs["q"], inputs["k"]], allow_unused=True)
    assert got[0].any() and got[1] is None


def test_opcheck_on_permuted_layouts():
    case = replace(FULL, dim=16, rotary=8, dtype=torch.float32, layout="permuted")
    inputs = [None if t is None else t.detach() for t in case.inputs().values()]
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.presto_kernels.qk_norm_rope_triton, (*inputs, 1, 1e-6, True), test_utils=checks)
    grads = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in inputs[:2]]
    torch.library.opcheck(
        torch.ops.presto_kernels.qk_norm_rope_backward_triton,
        (*grads, *inputs, 1, 1e-6, False, 0b110111),
        test_utils=checks,
    )
    inputs = [None if t is None else t.detach() for t in replace(case, norm="dyt").inputs().values()]
    torch.library.opcheck(
        torch.ops.presto_kernels.qk_norm_rope_backward_triton,
        (*grads, *inputs, 4, 0.0, False, 0b11000101),
        test_utils=checks,
    )


def test_compiles_as_one_graph_for_every_odd_length():
    def attention_input(qkv, weight, cos, sin):
        q, k, _ = qkv.unflatten(-1, (3, 2, 16)).unbind(2)
        q, k = presto_kernels.qk_norm_rope(q, k, cos, sin, q_weight=weight)
        q, _ = presto_kernels.qk_norm_rope(q, None, cos, sin, norm="dyt", q_alpha=weight[:1])
        return (q * k).sum()

    compiled = torch.compile(attention_input, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (5, 3, 7):
        leaves = [torch.randn(2, tokens, 96).requires_grad_(), torch.randn(16).requires_grad_()]
        angle = torch.randn(tokens, 8)
        with torch.compiler.set_stance("default" if tokens == 5 else "fail_on_recompile"):
            got = torch.autograd.grad(compiled(*leaves, angle.cos(), angle.sin()), leaves)
        right = torch.autograd.grad(attention_input(*leaves, angle.cos(), angle.sin()), leaves)
        assert all(torch.equal(a, b) for a, b in zip(got, right, strict=True))


def test_what_is_too_large_is_refused_by_name():
    wide = torch.zeros(1, 1, 1, triton_kernels.MAX_DIM + 1)
    with pytest.raises(ValueError, match="wider than 2048"):
        presto_kernels.qk_norm_rope(wide, None, None, None)
    with presto_kernels.use_backend():
        assert presto_kernels.explain("qk_norm_rope", wide, None, None, None).backend != "triton"
    many = torch.zeros(1, 1, 1, 8).expand(2**10, 2**11, 2**10, 8)
    with pytest.raises(ValueError, match="more than 2139095040 heads"):
        torch.ops.presto_kernels.qk_norm_rope_triton(many, *[None] * 11, operators.NORMS["rms"], 1e-6, False)


# Kernels that are wrong, each by one line, and a call that shows it.
BROKEN = {
    "turned the other way": (
        "rotary_forward",
        "turned = first * c - second * s",
        "turned = first * c + second * s",
        FULL,
    ),
    "the rest is not scaled": (
        "rotary_forward",
        "            rest *= scale\n    one =",
        "            pass\n    one =",
        replace(FULL, rotary=32),
    ),
    "masked elements in the variance": (
        "rotary_forward",
        "first = tl.where(mask, first - mean, 0.0)",
        "first = first - mean",
        replace(FULL, dim=80, rotary=80, norm="layer", offset=3.0),
    ),
    "keys at the positions of queries": (
        "rotary_forward",
        "k_head, k_cos_row, k_sin_row, K_HEADS, NORM",
        "k_head, 0 * k_cos_row, 0 * k_sin_row, K_HEADS, NORM",
        FULL,
    ),
    "gradient turned forwards": ("rotary_backward_rows", "turned = d1 * c + d2 * s", "turned = d1 * c - d2 * s", FULL),
    "sum(dn * n) forgotten": ("rotary_backward_rows", "along *= reach", "along *= 0.0", FULL),
    "l2 below eps has a sum": (
        "rotary_backward_rows",
        "reach = tl.where(length >= eps, 1.0, 0.0)",
        "reach = tl.full(length.shape, 1.0, tl.float32)",
        replace(FULL, norm="l2", eps=8.0),
    ),
    "dyt forgets that tanh has a slope": ("rotary_backward_rows", "d1 *= tanh_slope(a * x1)", "d1 *= 1.0", DYT),
    "dyt without alpha": ("rotary_forward", "first = tanh(a * first)", "first = tanh(first)", DYT),
    "alpha's gradient of the first part alone": (
        "rotary_backward_rows",
        "alphas += tl.sum(d1 * x1 + d2 * x2, axis=1, keep_dims=True)",
        "alphas += tl.sum(d1 * x1, axis=1, keep_dims=True)",
        DYT,
    ),
    "last groups of a program dropped": (
        "rotary_backward_rows",
        "        done += GROUP\n    if dweight",
        "        done += 2 * chunk + GROUP\n    if dweight",
        replace(FULL, batch=1, tokens=31),
    ),
    "last sums dropped": (
        "rotary_backward_sums",
        "while done < terms:",
        "while done + TERMS < terms:",
        FULL,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_tolerance_catches(name, mutant, monkeypatch):
    """In bf16, where the tolerance is widest."""
    kernel, right, wrong, case = BROKEN[name]
    monkeypatch.setattr(triton_kernels, "KNOBS", replace(triton_kernels.KNOBS, max_programs=3))
    check(judge(case))
    monkeypatch.setattr(triton_kernels, kernel, getattr(mutant(right, wrong), kernel))
    with pytest.raises(AssertionError, match="BEYOND"):
        check(judge(case))
