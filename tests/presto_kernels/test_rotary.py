"""``qk_norm_rope`` against float64, on every implementation that runs on this machine's CPU tensors."""

import inspect
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import presto_kernels
from presto_kernels import _library
from presto_kernels.testing import check
from presto_kernels.testing.rotary import DTYPES, TENSORS, Case, cases, gradients, judge, run


def backends() -> list[str]:
    """Triton, in its interpreter, has a process and tests of its own."""
    return [b for b in presto_kernels.available_backends()["qk_norm_rope"] if b in ("cpu", "reference")]


def label(case: Case) -> str:
    return ",".join(f"{k}={v}" for k, v in vars(case).items() if v != getattr(Case(), k)) or "base"


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("case", cases(), ids=label)
def test_error_is_at_most_twice_that_of_pytorch(case, backend):
    with presto_kernels.use_backend(backend):
        check(judge(case))


@pytest.mark.skipif("cpu" not in backends(), reason="the compiled CPU kernels are not here")
@pytest.mark.parametrize("instruction_set", _library.INSTRUCTION_SETS[1:])
def test_every_instruction_set(instruction_set):
    """The sets differ in vector width, tails, how heads lie in registers and how bf16 is rounded."""
    if _library.limit_instruction_set(instruction_set) != instruction_set:
        pytest.skip(f"this processor has no {instruction_set}")
    try:
        with presto_kernels.use_backend("cpu"):
            for case in cases():
                check(judge(case))
    finally:
        _library.limit_instruction_set(_library.INSTRUCTION_SETS[-1])


@pytest.mark.parametrize("backend", backends())
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_stride_and_dtype(backend, data):
    dtype = st.sampled_from(DTYPES)
    dim = data.draw(st.one_of(st.integers(4, 260), st.sampled_from([16, 32, 48, 64, 80, 96, 128])))
    half = data.draw(st.one_of(st.integers(0, dim // 2), st.sampled_from([dim // 2, dim // 4])))
    case = Case(
        batch=data.draw(st.integers(1, 3)),
        tokens=data.draw(st.integers(1, 70)),
        heads=data.draw(st.integers(1, 9)),
        dim=dim,
        rotary=2 * half,
        k_tokens=data.draw(st.sampled_from([None, 1, 5, 66])),
        k_heads=data.draw(st.sampled_from([None, 0, 1, 2])),
        dtype=data.draw(dtype),
        k_dtype=data.draw(dtype),
        affine_dtype=data.draw(dtype),
        weight=data.draw(st.booleans()),
        bias=data.draw(st.booleans()),
        norm=data.draw(st.sampled_from(["rms", "layer", "l2", "dyt", None])),
        alpha=data.draw(st.sampled_from([0.0, 1.0, 4.0])),
        alpha_axes=data.draw(st.integers(0, 1)),
        interleaved=data.draw(st.booleans()),
        layout=data.draw(st.sampled_from(["plain", "fused", "permuted", "strided"])),
        seed=data.draw(st.integers(0, 999)),
    )
    if case.rotary and case.k_heads == 0:
        case = replace(case, k_tokens=None)
    with presto_kernels.use_backend(backend):
        check(judge(case))


def quarter_turn(interleaved: bool) -> torch.Tensor:
    """Position 1 turned by 90 degrees."""
    q = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(1, 1, 1, 5)
    angle = torch.full((1, 2), torch.pi / 2)
    return presto_kernels.qk_norm_rope(q, None, angle.cos(), angle.sin(), norm=None, interleaved=interleaved)[0]


@pytest.mark.parametrize("backend", backends())
def test_what_rotary_means(backend):
    """By hand: a quarter turn takes (a, b) to (-b, a); the pairs are (1, 3), (2, 4) or (1, 2), (3, 4); 5 stays."""
    with presto_kernels.use_backend(backend):
        torch.testing.assert_close(quarter_turn(False).flatten(), torch.tensor([-3.0, -4.0, 1.0, 2.0, 5.0]))
        torch.testing.assert_close(quarter_turn(True).flatten(), torch.tensor([-2.0, 1.0, -4.0, 3.0, 5.0]))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("dim", [64, 20])
def test_what_dyt_means(backend, dim):
    """Stable Audio 3's DynamicTanh: element by element, saturating, whatever the rest of the head is."""
    q = torch.linspace(-9, 9, dim).view(1, 1, 1, dim)
    q[..., 3] = float("inf")
    weight, bias = torch.linspace(1, 2, dim), torch.linspace(-1, 1, dim)
    with presto_kernels.use_backend(backend):
        y, _ = presto_kernels.qk_norm_rope(
            q, None, None, None, q_weight=weight, q_bias=bias, q_alpha=torch.tensor(4.0), norm="dyt", eps=1e9
        )
    torch.testing.assert_close(y, weight * torch.tanh(4 * q) + bias)


@pytest.mark.parametrize("backend", backends())
def test_scores_depend_on_distance_alone(backend):
    """What rotary is for: a query at n and a key at m see n - m."""
    q, k = torch.randn(1, 1, 1, 64).expand(1, 9, 1, 64), torch.randn(1, 1, 1, 64).expand(1, 9, 1, 64)
    angles = torch.outer(torch.arange(9.0), 10000 ** -(torch.arange(32) / 32))
    with presto_kernels.use_backend(backend):
        a, b = presto_kernels.qk_norm_rope(q, k, angles.cos(), angles.sin())
    scores = a[0, :, 0] @ b[0, :, 0].T
    for distance in range(-8, 9):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif("cpu" not in backends(), reason="the compiled CPU kernels are not here")
def test_a_view_of_the_fused_projection_is_the_same_as_a_copy_bit_for_bit():
    case = Case(tokens=33, heads=5, dtype=torch.bfloat16)
    inputs = case.inputs()
    assert not inputs["q"].is_contiguous()
    copies = inputs | {name: inputs[name].detach().contiguous().requires_grad_() for name in ("q", "k")}
    with presto_kernels.use_backend("cpu"):
        for a, b in zip(run(case, inputs), run(case, copies), strict=True):
            assert torch.equal(a, b)


@pytest.mark.skipif("cpu" not in backends(), reason="the compiled CPU kernels are not here")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim, rotary", [(64, 64), (128, 64), (80, 80)])
def test_streamed_results_are_the_same_bit_for_bit(dtype, dim, rotary):
    """Results past 2 MiB are written around the cache."""
    case = Case(batch=1, tokens=2**21 // (8 * dim) + 3, heads=5, dim=dim, rotary=rotary, dtype=dtype)
    inputs = {name: None if t is None else t.detach() for name, t in case.inputs().items()}
    few = {
        name: t[:, :9] if name in ("q", "k") else t[:9] if name in ("cos", "sin") else t for name, t in inputs.items()
    }

    def forward_and_backward(tensors):
        leaves = [tensors[name].requires_grad_() for name in ("q", "k")]
        outputs = run(case, tensors)
        return [*outputs, *torch.autograd.grad(outputs, leaves, [torch.ones_like(y) for y in outputs])]

    with presto_kernels.use_backend("cpu"):
        for a, b in zip(forward_and_backward(inputs), forward_and_backward(few), strict=True):
            assert torch.equal(a[:, :9], b)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("norm, dtype", [("rms", torch.bfloat16), ("dyt", torch.float32)])
def test_gradients_are_bitwise_the_same_on_every_run_and_thread_count(backend, norm, dtype):
    case = Case(batch=3, tokens=301, heads=5, k_tokens=77, k_heads=2, dtype=dtype, bias=True, norm=norm)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            inputs = case.inputs()
            with presto_kernels.use_backend(backend):
                outputs = run(case, inputs)
                seen.append([*outputs, *gradients(outputs, inputs, outputs).values()])
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("empty", [{"batch": 0}, {"tokens": 0}, {"k_tokens": 0}, {"heads": 0, "k_heads": 2}])
def test_empty(backend, empty):
    case = replace(Case(bias=True, norm="dyt"), **empty)
    inputs = case.inputs()
    with presto_kernels.use_backend(backend):
        outputs = run(case, inputs)
        found = gradients(outputs, inputs, outputs)
    assert [y.shape for y in outputs] == [inputs["q"].shape, inputs["k"].shape]
    for side, y in zip("qk", outputs, strict=True):
        if not y.numel():
            assert not any(found[name].any() for name in (side, f"{side}_weight", f"{side}_bias", f"{side}_alpha"))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("norm", ["rms", "dyt", None])
def test_only_the_gradients_that_are_wanted(backend, norm):
    """Every input may be frozen, and either output unused."""
    case = Case(tokens=9, bias=True, norm=norm)
    full = case.inputs()
    names = [name for name, t in full.items() if t is not None and t.requires_grad]
    with presto_kernels.use_backend(backend):
        for used in ((0,), (1,), (0, 1)):

            def loss(tensors, used=used):
                outputs = run(case, tensors)
                return sum(outputs[i].sin().sum() for i in used)

            expected = torch.autograd.grad(loss(full), [full[name] for name in names], materialize_grads=True)
            for name, right in zip(names, expected, strict=True):
                some = {k: t if t is None else t.detach().requires_grad_(k == name) for k, t in full.items()}
                value = loss(some)
                if not value.requires_grad:  # q' does not depend on what only k' uses
                    assert not right.any()
                    continue
                (got,) = torch.autograd.grad(value, [some[name]], materialize_grads=True)
                torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", backends())
def test_a_rotation_alone_keeps_no_query(backend):
    """What is saved for the backward is the tables: nothing that a training step would hold on to."""
    if backend == "reference":
        pytest.skip("autograd keeps what it needs")
    case = Case(norm=None, weight=False)
    inputs = case.inputs()
    with presto_kernels.use_backend(backend):
        q, _ = run(case, inputs)
    kept = [t for t in q.grad_fn.saved_tensors if t is not None]
    assert {t.data_ptr() for t in kept} == {inputs["cos"].data_ptr(), inputs["sin"].data_ptr()}


@pytest.mark.parametrize("backend", backends())
def test_results_are_new_tensors(backend):
    q = torch.randn(2, 3, 2, 8)
    with presto_kernels.use_backend(backend):
        y, _ = presto_kernels.qk_norm_rope(q, None, None, None, norm=None)
    assert torch.equal(y, q) and y.untyped_storage().data_ptr() != q.untyped_storage().data_ptr()


@pytest.mark.parametrize("backend", backends())
def test_autocast_changes_nothing(backend):
    case = Case()
    inputs = case.inputs()
    with presto_kernels.use_backend(backend):
        without = run(case, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            within_it = run(case, inputs)
    assert all(torch.equal(a, b) for a, b in zip(without, within_it, strict=True))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("norm", ["rms", "layer", "l2"])
@pytest.mark.parametrize("dim, rotary", [(64, 64), (80, 80), (17, 10), (128, 64)])
def test_nan_stays_in_its_head(backend, norm, dim, rotary):
    case = Case(batch=1, tokens=3, heads=6, dim=dim, rotary=rotary, norm=norm, dtype=torch.bfloat16)
    inputs = {name: None if t is None else t.detach() for name, t in case.inputs().items()}
    inputs["q"][0, 1, 2, 5] = float("nan")
    with presto_kernels.use_backend(backend):
        q, k = run(case, inputs)
    assert q[0, 1, 2].isnan().all() and k.isfinite().all()
    assert q.isnan().sum() == dim


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim, rotary", [(128, 64), (64, 32), (80, 40)])
def test_infinity_where_nothing_turns_stays_in_its_element(backend, interleaved, dim, rotary):
    q = torch.randn(1, 1, 4, dim)
    q[0, 0, 1, rotary] = float("inf")
    angle = torch.randn(1, rotary // 2)
    with presto_kernels.use_backend(backend):
        y, _ = presto_kernels.qk_norm_rope(q, None, angle.cos(), angle.sin(), norm=None, interleaved=interleaved)
    assert y[0, 0, 1, rotary] == float("inf") and y.isfinite().sum() == y.numel() - 1


def test_float64_runs_on_the_reference():
    q, k = (torch.randn(1, 3, h, 6, dtype=torch.float64, requires_grad=True) for h in (2, 1))
    weight, bias = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    angle = torch.randn(3, 2, dtype=torch.float64)

    def op(q, k, weight, bias, norm):
        alphas = {"q_alpha": weight[:1], "k_alpha": bias[1]} if norm == "dyt" else {}
        return presto_kernels.qk_norm_rope(
            q, k, angle.cos(), angle.sin(), q_weight=weight, k_bias=bias, **alphas, norm=norm, interleaved=norm == "rms"
        )

    assert presto_kernels.explain("qk_norm_rope", q, k, angle.cos(), angle.sin()).backend == "reference"
    for norm in ("rms", "layer", "l2", "dyt", None):
        assert torch.autograd.gradcheck(lambda *t, norm=norm: op(*t, norm), (q, k, weight, bias))


@pytest.mark.slow
@pytest.mark.skipif("cpu" not in backends(), reason="the compiled CPU kernels are not here")
def test_more_than_two_to_the_31_elements():
    """An output of 4.3 GB; the input is one token seen two million times."""
    tokens = 2**21 + 1
    q = torch.randn(1, 1, 16, 64, dtype=torch.bfloat16).expand(1, tokens, 16, 64)
    angle = torch.randn(1, 32).expand(tokens, 32)
    with torch.no_grad(), presto_kernels.use_backend("cpu"):
        y, _ = presto_kernels.qk_norm_rope(q, None, angle.cos(), angle.sin())
    assert y.numel() > 2**31
    assert torch.equal(y[0, 0], y[0, -1]) and torch.equal(y[0, 0], y[0, tokens // 2])


BAD = {
    "q is not a tensor": ({"q": [1.0]}, TypeError, "q must be a tensor, got list"),
    "q is integer": ({"q": torch.ones(2, 7, 3, 64, dtype=torch.int32)}, TypeError, "q must be float32.*torch.int32"),
    "q is 3-D": ({"q": torch.ones(2, 7, 64)}, ValueError, r"q must be \[B, N, H, Dh\].*got \[2, 7, 64\]"),
    "k has another batch": ({"k": torch.ones(3, 7, 3, 64)}, ValueError, r"k must be \[2, Nk, Hkv, 64\].*got \[3,"),
    "k has another head size": ({"k": torch.ones(2, 7, 3, 32)}, ValueError, r"k must be \[2, Nk, Hkv, 64\]"),
    "k is on another device": (
        {"k": torch.ones(2, 7, 3, 64, device="meta")},
        ValueError,
        "k is on meta",
    ),
    "k is longer and has no tables": ({"k": torch.ones(2, 8, 3, 64)}, ValueError, "k_cos and k_sin are needed.*8.*7"),
    "sin alone": ({"cos": None}, ValueError, "cos and sin come together"),
    "k_sin alone": ({"k_sin": torch.ones(7, 32)}, ValueError, "k_cos and k_sin come together"),
    "k_cos without cos": (
        {"cos": None, "sin": None, "k_cos": torch.ones(7, 32), "k_sin": torch.ones(7, 32)},
        ValueError,
        "k_cos is given but cos is None",
    ),
    "cos of another length": ({"cos": torch.ones(6, 32)}, ValueError, r"cos must be \[7, R/2 .*got \[6, 32\]"),
    "cos too wide": ({"cos": torch.ones(7, 33)}, ValueError, r"cos must be \[7, R/2 with 2 <= R <= 64\]"),
    "sin of another width": ({"sin": torch.ones(7, 16)}, ValueError, r"sin must be \[7, 32\], got \[7, 16\]"),
    "k_cos of another width": (
        {"k_cos": torch.ones(7, 16), "k_sin": torch.ones(7, 16)},
        ValueError,
        r"k_cos must be \[7, 32\]",
    ),
    "cos in bf16": ({"cos": torch.ones(7, 32).bfloat16()}, TypeError, "cos must be float32, got torch.bfloat16"),
    "cos requires grad": (
        {"cos": torch.ones(7, 32, requires_grad=True)},
        ValueError,
        "cos requires grad, but is a constant",
    ),
    "weight of another width": ({"q_weight": torch.ones(63)}, ValueError, r"q_weight must be \[64\].*got \[63\]"),
    "bias by head": ({"k_bias": torch.ones(3, 64)}, ValueError, r"k_bias must be \[64\].*got \[3, 64\]"),
    "something of k without k": ({"k": None}, ValueError, "k_weight is given but k is None"),
    "norm is unknown": ({"norm": "batch"}, ValueError, "norm must be 'rms', 'layer', 'l2', 'dyt' or None, got 'batch'"),
    "dyt without q_alpha": ({"norm": "dyt"}, ValueError, r"norm='dyt' needs q_alpha, a tensor \[1\] or \[\]"),
    "dyt without k_alpha": ({"norm": "dyt", "q_alpha": torch.ones(1)}, ValueError, "norm='dyt' needs k_alpha"),
    "an alpha of another norm": ({"q_alpha": torch.ones(1)}, ValueError, "q_alpha belongs to norm='dyt'.* is 'rms'"),
    "an alpha for each head": (
        {"norm": "dyt", "q_alpha": torch.ones(3), "k_alpha": torch.ones(1)},
        ValueError,
        r"q_alpha must be \[1\] or \[\], got \[3\]",
    ),
    "alpha is a number": (
        {"norm": "dyt", "q_alpha": torch.ones(1), "k_alpha": 4.0},
        TypeError,
        "k_alpha must be a tensor, got float",
    ),
    "alpha is integer": (
        {"norm": "dyt", "q_alpha": torch.ones((), dtype=torch.int32)},
        TypeError,
        "q_alpha must be float32",
    ),
    "k_alpha without k": (
        {"k": None, "k_weight": None, "k_alpha": torch.ones(1)},
        ValueError,
        "k_alpha is given but k is None",
    ),
    "eps is negative": ({"eps": -1e-6}, ValueError, "eps must be a number >= 0, got -1e-06"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    change, error, message = BAD[name]
    arguments = Case().inputs() | change
    with pytest.raises(error, match=f"qk_norm_rope: {message}"):
        presto_kernels.qk_norm_rope(**arguments)
    with pytest.raises(error):
        presto_kernels.explain("qk_norm_rope", **arguments)


def test_transforms_are_refused_by_name():
    q = torch.randn(2, 3, 2, 8)
    call = lambda q: presto_kernels.qk_norm_rope(q, None, None, None)[0]  # noqa: E731
    with pytest.raises(NotImplementedError, match=r"qk_norm_rope: torch\.func transforms"):
        torch.func.vmap(call)(q.unsqueeze(0))
    with pytest.raises(NotImplementedError, match="qk_norm_rope: "):
        torch.func.jvp(call, (q,), (q,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        call(torch.autograd.forward_ad.make_dual(q, q))


@pytest.mark.skipif("cpu" not in backends(), reason="the compiled CPU kernels are not here")
def test_gradients_are_first_order_only():
    q = torch.randn(1, 3, 1, 8, requires_grad=True)
    y, _ = presto_kernels.qk_norm_rope(q, None, None, None)
    (gradient,) = torch.autograd.grad(y.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_every_tensor_argument_is_tested():
    """A new argument that the cases do not know would go untested."""
    parameters = set(inspect.signature(presto_kernels.qk_norm_rope).parameters) - {"norm", "eps", "interleaved"}
    assert parameters == set(TENSORS)
