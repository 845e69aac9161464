"""The Triton kernels of the sampler family, run by Triton's interpreter on CPU tensors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import presto_kernels
from presto_kernels.ops.sampler import reference, triton_kernels
from presto_kernels.testing import check
from presto_kernels.testing.sampler import OPS, Case, cases, judge, run

OPERATORS = torch.ops.presto_kernels


@pytest.fixture(autouse=True)
def forced():
    with presto_kernels.use_backend("triton"):
        yield


@pytest.mark.parametrize(
    "case",
    cases((torch.float32, torch.bfloat16)),
    ids=lambda case: f"{case.op}-{case.dtype}-{case.shape}-{case.layout}",
)
def test_error_is_at_most_twice_that_of_pytorch(case):
    check(judge(case))


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    case=st.builds(
        Case,
        st.sampled_from(sorted(OPS)),
        shape=st.lists(st.integers(1, 14), min_size=2, max_size=4).map(tuple),
        dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        output_dtype=st.sampled_from([None, torch.float32, torch.bfloat16]),
        seed=st.none() | st.integers(-(2**63), 2**64 - 1),
        offset=st.none() | st.integers(0, 2**32 - 1),
        signal=st.sampled_from([1.0, 0.5]),
        layout=st.sampled_from(["plain", "permuted", "sliced", "columns", "broadcast"]),
        random=st.integers(0, 9),
    )
)
def test_any_call(case):
    check(judge(case))


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**40 + 5, torch.tensor([4, -(2**40)])])
def test_the_noise_is_within_4_ulp_of_the_radius(seed):
    shape = (2, 8200)
    noise = presto_kernels.renoise(torch.zeros(shape), 1.0, seed=seed, offset=2**32 - 2).double().view(2, -1, 2)
    signed = seed - 2**64 if not isinstance(seed, torch.Tensor) and seed >= 2**63 else seed
    right = reference.normal(torch.Size(shape), signed, 2**32 - 2, torch.device("cpu")).view(2, -1, 2)
    radius = right.norm(dim=2, keepdim=True)
    assert ((noise - right).abs() <= 4 * 2.0 ** (torch.floor(torch.log2(radius)) - 23)).all()


def test_a_seed_for_each_sample_draws_as_a_batch_of_one():
    x = torch.zeros(3, 50)
    seeds, offsets = torch.tensor([7, -2, 2**40]), torch.tensor([0, 5, 2**32 + 6])
    both = presto_kernels.renoise(x, 1.0, seed=seeds, offset=offsets)
    for i, (seed, offset) in enumerate([(7, 0), (-2, 5), (2**40, 6)]):
        assert torch.equal(both[i : i + 1], presto_kernels.renoise(x[:1], 1.0, seed=seed, offset=offset))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (2, 5, 0)])
def test_empty(op, shape):
    case = Case(op, shape=shape)
    inputs = case.inputs()
    y = run(case, inputs)
    assert y.shape == shape
    for leaf, grad in zip(inputs.values(), torch.autograd.grad(y.sum(), list(inputs.values())), strict=True):
        assert grad.shape == leaf.shape and not grad.any()


@pytest.mark.parametrize("op", OPS)
def test_gradients_are_bitwise_the_same_on_every_run(op):
    seen = []
    for _ in range(2):
        inputs = Case(op, shape=(2, 50, 41)).inputs()
        y = run(Case(op, shape=(2, 50, 41)), inputs)
        seen.append([y, *torch.autograd.grad(y.square().sum(), list(inputs.values()))])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_a_gradient_does_not_depend_on_which_others_are_wanted():
    f, x, sigma = (t.detach() for t in Case("edm_denoise", shape=(2, 9, 24)).inputs().values())
    every = OPERATORS.edm_denoise_backward_triton(x, f, x, sigma, 0.5, 0.0, 0, 7)
    for bit in range(3):
        alone = OPERATORS.edm_denoise_backward_triton(x, f, x, sigma, 0.5, 0.0, 0, 1 << bit)
        assert [t.numel() > 0 for t in alone] == [i == bit for i in range(3)]
        assert torch.equal(alone[bit], every[bit])


def test_without_noise_nothing_changes():
    x = torch.randn(2, 5, 24)
    assert torch.equal(presto_kernels.renoise(x, 0.0, seed=1, offset=0), x)
    assert torch.equal(presto_kernels.edm_denoise(x.sin(), x, torch.zeros(2)), x)


@pytest.mark.parametrize("layout", ["plain", "permuted", "columns"])
def test_opcheck(layout):
    f, x, sigma = (t.detach() for t in Case("edm_denoise", shape=(2, 5, 24), layout=layout).inputs().values())
    torch.library.opcheck(OPERATORS.edm_denoise_triton, (f, x, sigma, 0.5, 0.1))
    torch.library.opcheck(OPERATORS.edm_denoise_backward_triton, (x, f, x, sigma, 0.5, 0.1, 0, 7))
    seeds = torch.tensor([1, -2])
    torch.library.opcheck(OPERATORS.renoise_triton, (x, sigma, 0.0, seeds, 0, None, 4, 0.5))
    torch.library.opcheck(OPERATORS.renoise_backward_triton, (x, sigma, None, 3, None, 4))


def test_compiles_as_one_graph_for_every_odd_length_and_seed():
    def step(f, x, sigma, seed):
        x0 = presto_kernels.edm_denoise(f, x, sigma)
        return presto_kernels.renoise(x0, sigma, seed=seed, offset=2).sin().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for seed, tokens in enumerate((5, 3, 7, 9), start=10):
        leaves = [torch.randn(s).requires_grad_() for s in ((2, tokens, 16), (2, tokens, 16), (2,))]
        with torch.compiler.set_stance("default" if tokens == 5 else "fail_on_recompile"):
            got = torch.autograd.grad(compiled(*leaves, seed), leaves)
        for a, b in zip(got, torch.autograd.grad(step(*leaves, seed), leaves), strict=True):
            assert torch.equal(a, b)


def test_what_is_too_large_is_refused_by_name():
    many = torch.zeros(1).expand(2**31, 1)
    with pytest.raises(ValueError, match="more than 2147483647 programs"):
        presto_kernels.renoise(many, 1.0, seed=0, offset=0)
    with pytest.raises(ValueError, match="programs"):
        OPERATORS.renoise_triton(many, None, 1.0, None, 0, None, 0, 1.0)


# Kernels that are wrong, each by one line, and a call that shows it.
DENOISE, RENOISE = Case("edm_denoise", shape=(2, 30, 41)), Case("renoise", shape=(2, 30, 41))
BROKEN = {
    "sigma_min in the denominator of c_out": (
        "edm_denoise",
        "tl.sqrt_rn(sigma * sigma + square)",
        "tl.sqrt_rn(r * r + square)",
        replace(DENOISE, sigma_min=0.1),
    ),
    "sigma of another sample": (
        "edm_denoise",
        "_store(out, b, element, tl.fma(update, c_out, c_skip * value)",
        "c_skip, c_out = _edm_coefficients(tl.load(sigma).to(tl.float32), sigma_data, sigma_min)\n"
        "    _store(out, b, element, tl.fma(update, c_out, c_skip * value)",
        DENOISE,
    ),
    "slope of c_out forgets sigma_min": (
        "edm_denoise_backward",
        "(square + sigma_min * sigma)",
        "square",
        replace(DENOISE, sigma_min=0.5),
    ),
    "last sums dropped": (
        "sample_sums",
        "while done < programs:",
        "while done + TERMS < programs:",
        DENOISE,
    ),
    "nine rounds": ("renoise", "tl.static_range(10)", "tl.static_range(9)", RENOISE),
    "pairs in another order": (
        "renoise",
        "tl.join(tl.join(n0, n2), tl.join(n1, n3))",
        "tl.join(tl.join(n0, n1), tl.join(n2, n3))",
        RENOISE,
    ),
    "angle from another word": ("renoise", "n2, n3 = _box_muller(w2, w3)", "n2, n3 = _box_muller(w2, w1)", RENOISE),
    "sample forgotten": ("renoise", "c2 = zero + sample.to(tl.uint32)", "c2 = zero", RENOISE),
    "signal forgotten": ("renoise", "signal * value", "value", replace(RENOISE, signal=0.5)),
    "the backward draws from another offset": (
        "renoise_backward",
        "tl.store(sums + tl.program_id(0), tl.sum(g * eps, axis=0))",
        "eps = _normal(b, part, seeds, seeds_stride, seed, offsets, offsets_stride, offset + 1, BLOCK)\n"
        "    tl.store(sums + tl.program_id(0), tl.sum(g * eps, axis=0))",
        RENOISE,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_tolerance_catches(name, dtype, mutant, monkeypatch):
    kernel, right, wrong, case = BROKEN[name]
    case = replace(case, dtype=dtype)
    check(judge(case))
    broken = mutant(right, wrong)
    monkeypatch.setattr(triton_kernels.triton_jit, kernel, getattr(broken, kernel))
    with pytest.raises(AssertionError, match="BEYOND"):
        check(judge(case))
