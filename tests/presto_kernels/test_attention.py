"""attention on the CPU: the reference against float64, arguments, masks, gradients, and what PyTorch asks of an op."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

import presto_kernels
from presto_kernels.ops.attention import operators, reference
from presto_kernels.ops.attention.api import qk_norm_rope_attention
from presto_kernels.testing import check
from presto_kernels.testing.attention import Case, cases, judge, oracle

CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
BASE = Case(queries=21, heads=4, kv_heads=2, dim=16)
Q, K = torch.randn(2, 5, 4, 16), torch.randn(2, 5, 2, 16)


@pytest.fixture
def on_reference():
    with presto_kernels.use_backend("reference"):
        yield


@pytest.mark.parametrize("case", cases(), ids=str)
def test_reference_error_is_at_most_twice_plain_pytorch(case, on_reference):
    check(judge(case))


@pytest.mark.parametrize("rows", [1, 7, 256])
@pytest.mark.parametrize("window", [(3, 3), (-1, 0), (0, -1), (9, 2)])
def test_blocks_of_queries_do_not_change_the_reference(rows, window, monkeypatch, on_reference):
    monkeypatch.setattr(reference, "ROWS", rows)
    check(judge(replace(BASE, window=window, lengths=(21, 8), poison=True)))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.builds(
        Case,
        batch=st.just(2),
        queries=st.integers(1, 30),
        keys=st.one_of(st.none(), st.integers(1, 30)),
        heads=st.sampled_from([2, 4]),
        kv_heads=st.sampled_from([1, 2]),
        dim=st.integers(1, 20),
        dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        lengths=st.one_of(st.none(), st.tuples(st.integers(-2, 35), st.integers(-2, 35))),
        lengths_dtype=st.sampled_from([torch.int32, torch.int64]),
        window=st.one_of(st.none(), st.tuples(st.integers(-1, 35), st.integers(-1, 35))),
        scale=st.sampled_from([None, 0.7, -0.3]),
        layout=st.sampled_from(["fused", "plain", "heads first", "inner"]),
        poison=st.booleans(),
        seed=st.integers(0, 9),
    )
)
def test_any_call_of_the_reference(case):
    if case.keys is not None:
        case = replace(case, window=None)
    with presto_kernels.use_backend("reference"):
        check(judge(case))


def test_float64_is_the_formula_in_float64():
    case = replace(BASE, window=(4, 2), lengths=(21, 5), dtype=torch.float64)
    inputs = case.inputs()
    out = presto_kernels.attention(*inputs.values(), **case.options())
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, oracle(case, inputs), rtol=1e-12, atol=1e-12)
    leaves = [t.detach()[:, :5, :, :3].clone().requires_grad_() for t in inputs.values()]
    lengths = torch.tensor([5, 3])
    assert torch.autograd.gradcheck(
        lambda q, k, v: presto_kernels.attention(q, k, v, window=(2, 1), key_lengths=lengths), leaves
    )


def test_key_lengths_are_clamped_and_hide_nan(on_reference):
    k, v = K.clone(), K.clone()
    k[0, 2:], v[0, 2:] = torch.nan, torch.inf
    out = presto_kernels.attention(Q, k, v, key_lengths=torch.tensor([2, 99], dtype=torch.int32))
    expected = presto_kernels.attention(Q, K, K, key_lengths=torch.tensor([2, 5]))
    assert torch.equal(out, expected)
    assert not presto_kernels.attention(Q, k, v, key_lengths=torch.tensor([-7, 0]))[0].any()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_under_a_window_nan_stays_with_those_who_see_it(which, on_reference):
    """Key (or query) 2 of 5, seen by its neighbours alone."""
    results = []
    for poison in (False, True):
        leaves = [t.clone() for t in (Q, K, K)]
        if poison:
            leaves[which][:, 2] = torch.nan
        for leaf in leaves:
            leaf.requires_grad_()
        out = presto_kernels.attention(*leaves, window=(1, 0))
        results.append([out, *torch.autograd.grad(out.sin().nan_to_num().sum(), leaves)])
    rows = [2] if which == 0 else [2, 3]
    keys = sorted({j for i in rows for j in (i - 1, i)})
    for index, (clean, wrong) in enumerate(zip(*results, strict=True)):
        touched = rows if index < 2 else keys
        untouched = [i for i in range(5) if i not in touched]
        assert torch.equal(clean[:, untouched], wrong[:, untouched])
    assert results[1][0][:, rows].isnan().any(-1).all()


def test_a_window_that_hides_nothing_is_none():
    assert presto_kernels.explain("attention", Q, Q, Q, window=(4, 7)) == presto_kernels.explain("attention", Q, Q, Q)


@pytest.mark.parametrize("shape", [(0, 5, 5), (2, 0, 5), (2, 5, 0)])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_empty(shape, backend):
    batch, queries, keys = shape
    q = torch.randn(batch, queries, 4, 16, requires_grad=True)
    k, v = (torch.randn(batch, keys, 2, 16, requires_grad=True) for _ in range(2))
    with presto_kernels.use_backend(attention=backend):
        out = presto_kernels.attention(q, k, v)
    assert out.shape == q.shape and not out.any()
    for leaf, grad in zip((q, k, v), torch.autograd.grad(out.sum(), (q, k, v)), strict=True):
        assert grad.shape == leaf.shape and not grad.any()


WRONG = {
    "q must be a tensor": (TypeError, {"q": [1.0]}),
    "v must be float32, bfloat16": (TypeError, {"v": K.int()}),
    "k must have q's dtype torch.float32, got torch.bfloat16": (TypeError, {"k": K.bfloat16()}),
    "k is on meta": (ValueError, {"k": K.to("meta")}),
    r"q must be \[B, N, heads, Dh\]": (ValueError, {"q": Q[0]}),
    r"k must be \[2, Nk, Hkv, 16\]": (ValueError, {"k": K[:1], "v": K[:1]}),
    "v must have k's shape": (ValueError, {"v": K[:, :4]}),
    "q's 3 heads must be a multiple of k's, got 2": (ValueError, {"q": Q[:, :, :3]}),
    "q must have at least one head": (ValueError, {"q": Q[:, :, :0]}),
    "key_lengths must be an int32 or int64 tensor, got list": (TypeError, {"key_lengths": [3, 4]}),
    "key_lengths must be an int32 or int64 tensor, got torch.float32": (TypeError, {"key_lengths": torch.ones(2)}),
    r"key_lengths must be \[2\], got \[3\]": (ValueError, {"key_lengths": torch.tensor([1, 2, 3])}),
    "key_lengths is on meta": (ValueError, {"key_lengths": torch.ones(2, dtype=torch.int32, device="meta")}),
    r"window must be \(left, right\)": (ValueError, {"window": 3}),
    "window must be two integers >= -1": (ValueError, {"window": (3, -2)}),
    "window must be two integers": (ValueError, {"window": (3.0, 2)}),
    "a window needs as many queries as keys, got Nq = 5 and Nk = 4": (
        ValueError,
        {"k": K[:, :4], "v": K[:, :4], "window": (1, 1)},
    ),
    "scale must be a number": (TypeError, {"scale": "1"}),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    error, wrong = WRONG[message]
    arguments = {"q": Q, "k": K, "v": K} | wrong
    with pytest.raises(error, match=f"attention: {message}"):
        presto_kernels.attention(**arguments)


def test_transforms_are_refused_by_name():
    with pytest.raises(NotImplementedError, match=r"attention: torch\.func"):
        torch.vmap(lambda q: presto_kernels.attention(q[None], Q[:1], Q[:1]))(Q)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        presto_kernels.attention(torch.autograd.forward_ad.make_dual(Q, Q), K, K)


def test_gradients_are_first_order_only(on_reference):
    leaf = Q.clone().requires_grad_()
    (grad,) = torch.autograd.grad(presto_kernels.attention(leaf, K, K).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):
        grad.sum().backward()


def layer(x, lengths):
    q, k, v = x.unflatten(2, (3, 2, 16)).unbind(2)
    y = presto_kernels.attention(q, k, v, key_lengths=lengths)
    return presto_kernels.attention(y, k, k, window=(2, 2)) + presto_kernels.attention(y, k, v)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_fullgraph_compile_forward_and_backward(backend):
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, lengths, results = torch.randn(2, 9, 96), torch.tensor([9, 4]), []
    with presto_kernels.use_backend(backend):
        for function in (layer, compiled):
            leaf = x.clone().requires_grad_()
            y = function(leaf, lengths)
            results.append([y, *torch.autograd.grad(y.square().sum(), leaf)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_one_compile_serves_a_sweep_of_odd_lengths(training):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    compiles = []
    for tokens in (7, 9, 33, 101):
        x = torch.randn(2, tokens, 96).requires_grad_(training)
        y = compiled(x, torch.tensor([tokens, 3]))
        if training:
            torch.autograd.grad(y.sum(), x)
        compiles.append(counter.frame_count)
    assert compiles == [compiles[0]] * 4


@pytest.mark.parametrize("layout", ["fused", "heads first", "inner"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_opcheck(backend, dtype, layout):
    if backend not in presto_kernels.available_backends()["attention"]:
        pytest.skip(f"no {backend} kernels here")
    case = replace(BASE, queries=7, layout=layout, lengths=(3, 7), dtype=dtype)
    q, k, v = (t.detach() for t in case.inputs().values())
    mask = (case.key_lengths(), 3, 2, 0.25)
    torch.library.opcheck(operators.forward_operator(backend), (q, k, v, *mask), test_utils=CHECKS)
    out, lse = operators.forward_operator(backend)(q, k, v, *mask)
    grad = torch.randn(2, 16, 7, 4).permute(0, 2, 3, 1).to(dtype)
    arguments = (grad, q, k, v, out, lse, *mask)
    torch.library.opcheck(operators.backward_operator(backend), arguments, test_utils=CHECKS)


def test_operators_say_their_shapes_without_running():
    q, k = Q.to("meta"), K[:, :3].to("meta")
    for name in ("attention", "attention_triton"):
        out, lse = getattr(torch.ops.presto_kernels, name)(q, k, k, None, -1, -1, 1.0)
        assert out.shape == q.shape and lse.shape == (2, 4, 5) and lse.dtype == torch.float32
        grads = getattr(torch.ops.presto_kernels, name.replace("attention", "attention_backward"))(
            q, q, k, k, out, lse, None, -1, -1, 1.0
        )
        assert [g.shape for g in grads] == [q.shape, k.shape, k.shape]


def test_measurements_are_filed_by_head_dim_mask_and_work():
    def bucket(q, k, **options):
        checked = presto_kernels.backends._OPS["attention"].check(q, k, k, **options)
        return presto_kernels.backends._OPS["attention"].bucket(*checked)

    assert bucket(Q, K) == ("dh16", 2 * 4 * 5 * 5)
    assert bucket(Q, K[:, :3]) == ("dh16 cross", 2 * 4 * 5 * 3)
    assert bucket(Q, K, window=(1, 1)) == ("dh16 window", 2 * 4 * 5 * 3)
    assert bucket(Q, K, window=(-1, 0)) == ("dh16 window", 2 * 4 * 5 * 3)
    assert bucket(Q, K, key_lengths=torch.tensor([1, 2])) == ("dh16 lengths", 2 * 4 * 5 * 5)


def test_the_window_bounds_the_work_of_the_reference():
    """A row of N keys is never there whole: what is multiplied grows with N, not its square."""
    blocks = list(reference._blocks(21964, 21964, 17, 17))
    pairs = sum((rows.stop - rows.start) * (keys.stop - keys.start) for rows, keys in blocks)
    assert pairs < 21964 * (reference.ROWS + 35)
    assert [rows.start for rows, _ in blocks] == list(range(0, 21964, reference.ROWS))


def test_the_tolerance_catches_a_wrong_scale():
    def wrong(case, inputs):
        return operators.forward_operator("reference")(*inputs.values(), None, -1, -1, 0.27)[0]

    with pytest.raises(AssertionError, match="BEYOND"):
        check(judge(replace(BASE, dtype=torch.bfloat16), backward=False, implementation=wrong))


def test_qk_norm_rope_attention_is_the_two_ops():
    angles = torch.rand(5, 8)
    weight = torch.rand(16)
    out = qk_norm_rope_attention(Q, K, K, angles.cos(), angles.sin(), q_weight=weight, window=(2, 1))
    q, k = presto_kernels.qk_norm_rope(Q, K, angles.cos(), angles.sin(), q_weight=weight)
    torch.testing.assert_close(out, presto_kernels.attention(q, k, K, window=(2, 1)))
