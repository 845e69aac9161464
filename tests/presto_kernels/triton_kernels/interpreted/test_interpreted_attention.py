"""The Triton kernels of attention, run by Triton's interpreter on CPU tensors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import presto_kernels
from presto_kernels.ops.attention import operators, triton_jit, triton_kernels
from presto_kernels.testing import check
from presto_kernels.testing.attention import Case, cases, judge
from presto_kernels.testing.tolerance import within

ATTENTION = torch.ops.presto_kernels.attention_triton.default
BACKWARD = torch.ops.presto_kernels.attention_backward_triton.default


def tiles(queries: int, keys: int) -> triton_kernels.Knobs:
    every = tuple(((size, 128), triton_kernels.Tile(queries, keys, 4, 1)) for size in (2, 4))
    names = ("forward", "qk_norm_rope", "dq", "dkdv", "dkdv_window")
    return replace(triton_kernels.KNOBS, **dict.fromkeys(names, every))


@pytest.fixture(autouse=True)
def on_triton():
    with presto_kernels.use_backend("triton"):
        yield


@pytest.fixture
def small_tiles(monkeypatch):
    """So small that short sequences have blocks of every kind, before, among and after those seen whole."""
    monkeypatch.setattr(triton_kernels, "KNOBS", tiles(16, 16))


def shortened(case: Case) -> Case:
    """The interpreter takes some 0.05 s a block."""
    if case.lengths is None:
        case = replace(case, batch=1)
    return replace(case, queries=70) if case.queries > 131 and case.lengths is not None else case


def chosen() -> list[Case]:
    """Every other case of bf16, which rounds most, and a few of the rest; masks in small blocks follow below."""
    every = [shortened(case) for case in cases()]
    half = [case for case in every if case.dtype == torch.bfloat16]
    return [*half[::2], *[case for case in every if case not in half][1::10]]


@pytest.mark.parametrize("case", chosen(), ids=str)
def test_error_is_at_most_twice_plain_pytorch(case):
    check(judge(case))


BASE = Case(batch=1, queries=54, heads=2, kv_heads=1, dim=24, dtype=torch.bfloat16)
SEVERAL_BLOCKS = (
    replace(BASE, dtype=torch.float32),
    replace(BASE, keys=40, lengths=(37,), dtype=torch.float32, poison=True),
    replace(BASE, window=(20, 35)),
    replace(BASE, window=(-1, 0), dtype=torch.float16),
    replace(BASE, window=(3, -1), lengths=(40,), poison=True),
    replace(BASE, heads=4, kv_heads=2, queries=33, window=(40, 5), lengths=(20,), poison=True),
)


@pytest.mark.parametrize("case", SEVERAL_BLOCKS, ids=str)
def test_several_blocks(case, small_tiles):
    check(judge(case))


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.builds(
        Case,
        batch=st.just(2),
        queries=st.integers(1, 35),
        keys=st.one_of(st.none(), st.integers(1, 35)),
        heads=st.sampled_from([2, 4]),
        kv_heads=st.sampled_from([1, 2]),
        dim=st.sampled_from([8, 17, 32]),
        dtype=st.sampled_from([torch.float32, torch.bfloat16]),
        lengths=st.one_of(st.none(), st.tuples(st.integers(-1, 45), st.integers(-1, 45))),
        lengths_dtype=st.sampled_from([torch.int32, torch.int64]),
        window=st.one_of(st.none(), st.tuples(st.integers(-1, 45), st.integers(-1, 45))),
        scale=st.sampled_from([None, 0.7]),
        layout=st.sampled_from(["fused", "plain", "heads first", "inner"]),
        poison=st.booleans(),
        seed=st.integers(0, 9),
    )
)
def test_any_call(case):
    if case.keys is not None:
        case = replace(case, window=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_kernels, "KNOBS", tiles(16, 16))
        check(judge(case))


def tensors(case: Case) -> list[torch.Tensor]:
    return [t.detach() for t in case.inputs().values()]


def forward_and_backward(case: Case, *, change=lambda q, k, v: None) -> list[torch.Tensor]:
    """[out, lse, dq, dk, dv] on Triton's operators."""
    q, k, v = (t.clone() for t in tensors(case))
    change(q, k, v)
    mask = (case.key_lengths(), *(case.window or (-1, -1)), case.dim**-0.5)
    out, lse = ATTENTION(q, k, v, *mask)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.dtype)
    return [out, lse, *BACKWARD(grad, q, k, v, out, lse, *mask)]


FULL = replace(BASE, batch=2, queries=35, window=(9, 20), lengths=(35, 13))


def test_lse_is_that_of_the_reference(small_tiles):
    q, k, v = tensors(FULL)
    arguments = (q, k, v, FULL.key_lengths(), 9, 20, 0.3)
    ours, theirs = ATTENTION(*arguments)[1], operators.forward_operator("reference")(*arguments)[1]
    assert (ours == -torch.inf).any()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_results_are_bitwise_the_same_on_every_run(small_tiles):
    for first, second in zip(forward_and_backward(FULL), forward_and_backward(FULL), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", ["k", "v", "q"])
def test_under_a_window_what_is_not_finite_stays_with_those_who_see_it(which, value, small_tiles):
    """Key (or query) 40 is one row's hidden and another's visible one, in the same block."""
    case = replace(BASE, heads=1, queries=70, window=(9, 4))

    def poison(q, k, v):
        {"q": q, "k": k, "v": v}[which][0, 40, 0] = value

    clean, wrong = forward_and_backward(case), forward_and_backward(case, change=poison)
    see = torch.zeros(70, dtype=torch.bool)  # the rows whose own numbers may change
    if which == "q":
        see[40] = True
    else:
        see[36:50] = True
    # Keys that such rows see, and gradients of theirs.
    seen = torch.zeros(70, dtype=torch.bool)
    for i in see.nonzero():
        seen[max(int(i) - 9, 0) : int(i) + 5] = True
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), clean, wrong, strict=True):
        rows = (lambda t: t.transpose(1, 2)) if name == "lse" else (lambda t: t)
        untouched = ~(seen if name in ("dk", "dv") else see)
        assert torch.equal(rows(a)[:, untouched], rows(b)[:, untouched]), name
    assert not wrong[0][:, see].isfinite().all()


def test_only_blocks_that_some_row_sees_are_visited(small_tiles, monkeypatch):
    visited = []
    for name in ("_forward_block", "_dq_block", "_dkdv_block"):
        block = getattr(triton_jit, name)

        def counted(*args, name=name, block=block):
            visited.append(name)
            return block(*args)

        monkeypatch.setattr(triton_jit, name, counted)
    for case in (
        replace(BASE, heads=1, queries=100, window=(17, 17)),
        replace(BASE, heads=1, queries=100, lengths=(20,)),
        replace(BASE, heads=1, queries=100, lengths=(0,)),
        replace(BASE, heads=1, queries=100, window=(-1, 0), lengths=(60,)),
    ):
        visited.clear()
        forward_and_backward(case)
        seen = case.visible()[0]
        left, _ = case.window or (-1, -1)
        expected = {"_forward_block": 0, "_dkdv_block": 0}
        for name, rows in (("_forward_block", seen), ("_dkdv_block", seen.T)):
            for block in rows.split(16):
                columns = block.any(0).nonzero()
                if len(columns):  # what they see has no gaps: blocks begin at its first column
                    expected[name] += -(-int(columns[-1] - columns[0] + 1) // 16)
        expected["_dq_block"] = expected["_forward_block"]
        assert {name: visited.count(name) for name in expected} == expected, (case, left)


@pytest.mark.parametrize("shape", [(0, 5, 5), (2, 0, 5), (2, 5, 0)])
def test_empty(shape):
    batch, queries, keys = shape
    q = torch.randn(batch, queries, 4, 16, requires_grad=True)
    k, v = (torch.randn(batch, keys, 2, 16, requires_grad=True) for _ in range(2))
    out = presto_kernels.attention(q, k, v)
    assert out.shape == q.shape and not out.any()
    for leaf, grad in zip((q, k, v), torch.autograd.grad(out.sum(), (q, k, v)), strict=True):
        assert grad.shape == leaf.shape and not grad.any()


@pytest.mark.parametrize("layout", ["fused", "heads first", "inner"])
def test_opcheck(layout):
    case = Case(queries=7, heads=2, kv_heads=1, dim=16, layout=layout, lengths=(3, 7), window=(3, 3))
    q, k, v = tensors(case)
    mask = (case.key_lengths(), 3, 3, 0.25)
    torch.library.opcheck(ATTENTION, (q, k, v, *mask))
    out, lse = ATTENTION(q, k, v, *mask)
    grad = torch.randn(2, 16, 7, 2).permute(0, 2, 3, 1)
    torch.library.opcheck(BACKWARD, (grad, q, k, v, out, lse, *mask))


def test_compiles_as_one_graph_for_every_odd_length():
    def layer(x, lengths):
        q, k, v = x.unflatten(2, (3, 2, 16)).unbind(2)
        y = presto_kernels.attention(q, k, v, key_lengths=lengths)
        return presto_kernels.attention(y, k, k, window=(2, 2)).sin().sum()

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (5, 3, 7, 9):
        x, lengths = torch.randn(2, tokens, 96).requires_grad_(), torch.tensor([2, tokens])
        with torch.compiler.set_stance("default" if tokens == 5 else "fail_on_recompile"):
            (got,) = torch.autograd.grad(compiled(x, lengths), x)
        torch.testing.assert_close(got, torch.autograd.grad(layer(x, lengths), x)[0])


def test_what_cannot_be_taken_is_refused_by_name():
    wide = torch.zeros(1, 2, 1, 136)
    with pytest.raises(ValueError, match="heads of 136 are wider than 128"):
        presto_kernels.attention(wide, wide, wide)
    q = torch.zeros(1, 2, 1, 8)
    with pytest.raises(ValueError, match="scale must be positive"):
        presto_kernels.attention(q, q, q, scale=-1.0)
    with pytest.raises(ValueError, match="wider than"):
        ATTENTION(wide, wide, wide, None, -1, -1, 1.0)
    with presto_kernels.use_backend():
        assert presto_kernels.explain("attention", wide, wide, wide).backend != "triton"


# QK-norm and rotary in the prologue


def separate(q, k, v, cos, sin, q_weight, k_weight, eps, key_lengths, left, right, scale, *, wide: bool):
    """Norm, rotary and attention one after the other, in float64 or as ordinary fused ops round."""
    dtype = torch.float64 if wide else torch.float32

    def normed(x, weight):
        x = x.to(dtype)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(dtype)
        if cos is not None:
            half = cos.shape[1]
            c, s = cos.to(dtype)[:, None], sin.to(dtype)[:, None]
            a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
            x = torch.cat([a * c - b * s, b * c + a * s, rest], -1)
        return x if wide else x.to(q.dtype)

    q, k = normed(q, q_weight), normed(k, k_weight)
    return operators.forward_operator("reference")(q, k, v.to(q.dtype), key_lengths, left, right, scale)[0]


def normed_call(case: Case, rotary: int) -> tuple:
    generator = torch.Generator().manual_seed(3)
    angles = torch.rand(case.queries, rotary // 2, generator=generator) * 6
    tables = (angles.cos(), angles.sin()) if rotary else (None, None)
    weights = (torch.rand(case.dim, generator=generator).to(case.dtype) for _ in range(2))
    mask = (case.key_lengths(), *(case.window or (-1, -1)), 0.3)
    return (*tensors(case), *tables, *weights, 1e-6, *mask)


NORMED = (
    (replace(BASE, dim=32), 32),
    (replace(BASE, dim=40, window=(9, 30), lengths=(50,)), 16),
    (replace(BASE, dim=24, dtype=torch.float32, lengths=(30,)), 20),
    (replace(BASE, dim=32, dtype=torch.float32), 0),
)


def judge_normed(case: Case, rotary: int) -> list:
    call = normed_call(case, rotary)
    ours = torch.ops.presto_kernels.attention_qk_norm_rope_triton(*call)
    right, plain = separate(*call, wide=True), separate(*call, wide=False)
    return [within("out", ours, right, plain, rowwise=False, eps=torch.finfo(case.dtype).eps)]


@pytest.mark.parametrize(("case", "rotary"), NORMED, ids=str)
def test_norm_and_rotary_in_the_prologue(case, rotary, small_tiles):
    check(judge_normed(case, rotary))


def test_opcheck_of_the_prologue():
    call = normed_call(replace(BASE, queries=7, dim=16, layout="heads first"), 8)
    torch.library.opcheck(torch.ops.presto_kernels.attention_qk_norm_rope_triton, call)


# Kernels that are wrong, each by one line, and a call that shows it.
BROKEN = {
    "old sums not rescaled": (
        "attention_forward",
        "total = total * decay[:, None]",
        "total = total",
        BASE,
    ),
    "window too wide by one": (
        "attention_forward",
        "(i - j <= left)",
        "(i - j <= left + 1)",
        replace(BASE, window=(3, 3)),
    ),
    "length too long by one": (
        "attention_forward",
        "tl.minimum(tl.maximum(given, 0), keys)",
        "tl.minimum(tl.maximum(given, 0) + 1, keys)",
        replace(BASE, lengths=(9,)),
    ),
    "last block not visited": (
        "attention_forward",
        "blocks = tl.maximum(stop - start + BLOCK - 1, 0) // BLOCK",
        "blocks = tl.maximum(stop - start, 0) // BLOCK",
        BASE,
    ),
    "delta of another head": (
        "attention_delta",
        "tl.store(delta + (b * heads + h) * queries + i,",
        "tl.store(delta + r,",
        BASE,
    ),
    "delta not taken off": (
        "attention_backward_dq",
        "(_dot(grad, tl.trans(value), PRECISION) - d[:, None])",
        "_dot(grad, tl.trans(value), PRECISION)",
        BASE,
    ),
    "dq not scaled": (
        "attention_backward_dq",
        "queries, total * scale, D",
        "queries, total, D",
        BASE,
    ),
    "one head of a group": (
        "attention_backward_dkdv",
        "h = (g * group + member).to(tl.int64)",
        "h = (g * group + member * 0).to(tl.int64)",
        BASE,
    ),
    "dk of hidden pairs": (
        "attention_backward_dkdv",
        "p = tl.where(visible, p, 0.0)",
        "pass",
        replace(BASE, window=(3, 3)),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_tolerance_catches(name, dtype, mutant, monkeypatch, small_tiles):
    kernel, right, wrong, case = BROKEN[name]
    case = replace(case, dtype=dtype, queries=40, batch=1)
    check(judge(case))
    monkeypatch.setattr(triton_kernels, kernel, getattr(mutant(right, wrong), kernel))
    with pytest.raises(AssertionError, match="BEYOND"):
        check(judge(case))


def test_the_tolerance_catches_a_rotary_the_wrong_way_round(mutant, monkeypatch, small_tiles):
    broken = mutant("tl.where((cols < HALF)[None, :], -s, s)", "tl.where((cols < HALF)[None, :], s, -s)")
    monkeypatch.setattr(triton_kernels, "attention_qk_norm_rope_forward", broken.attention_qk_norm_rope_forward)
    with pytest.raises(AssertionError, match="BEYOND"):
        check(judge_normed(*NORMED[0]))


def test_the_leak_test_catches_plain_products(mutant, monkeypatch, small_tiles):
    broken = mutant("tl.where(wrong > 0, 0.0, wide).to(values.dtype)", "values")
    for kernel in ("attention_forward", "attention_backward_dq", "attention_backward_dkdv"):
        monkeypatch.setattr(triton_kernels, kernel, getattr(broken, kernel))
    with pytest.raises(AssertionError):
        test_under_a_window_what_is_not_finite_stays_with_those_who_see_it("v", torch.nan, None)
