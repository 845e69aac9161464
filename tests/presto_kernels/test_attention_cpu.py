"""Attention's CPU kernels against float64, on every instruction set this processor has."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import presto_kernels
from presto_kernels import _library
from presto_kernels.testing import check
from presto_kernels.testing.attention import Case, cases, judge, run

pytestmark = pytest.mark.skipif(not _library.has_cpu_kernels, reason="the compiled CPU kernels are not here")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def on_cpu_kernels() -> Iterator[None]:
    with presto_kernels.use_backend("cpu"):
        yield


@pytest.fixture(params=_library.INSTRUCTION_SETS[1:])
def instruction_set(request) -> Iterator[str]:
    if _library.limit_instruction_set(request.param) != request.param:
        _library.limit_instruction_set(_library.INSTRUCTION_SETS[-1])
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    _library.limit_instruction_set(_library.INSTRUCTION_SETS[-1])


def blocks(dtype: torch.dtype) -> list[Case]:
    """Beside the shapes that hurt everybody, the edges of these kernels' own blocks: 6 rows, 16 lanes, 96 and 192 rows,
    96 and 512 keys, 128 and 480 queries."""
    base = Case(batch=1, heads=1, kv_heads=1, dtype=dtype)
    return [
        replace(base, queries=193, keys=257, dim=32, layout="plain"),
        replace(base, queries=192, keys=512, dim=16, layout="plain"),
        replace(base, queries=97, keys=289, heads=4, kv_heads=2, dim=24, layout="heads first"),
        replace(base, queries=6, keys=600, dim=48, lengths=(513,), poison=True),
        replace(base, queries=7, keys=1100, dim=16),
        replace(base, queries=128, keys=96, dim=8),
        replace(base, queries=129, keys=97, dim=2),
        replace(base, queries=40, dim=1),
        replace(base, queries=20, dim=256),
        replace(base, queries=20, dim=300),  # nothing ends at 256
        replace(base, queries=481, window=(17, 17), dim=16),
        replace(base, queries=600, window=(300, 40), dim=16, heads=2),
        replace(base, queries=600, window=(-1, 0), dim=16),
        replace(base, queries=500, window=(2, -1), dim=16, lengths=(450,), poison=True),
        replace(base, scale=-0.7),
        replace(base, scale=0.0),
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(instruction_set, dtype):
    for case in cases((dtype,)) + blocks(dtype):
        check(judge(case))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_mask_and_layout(data):
    def draw(strategy):
        return data.draw(strategy)

    batch, group, kv_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    queries = draw(st.integers(1, 300))
    window = draw(st.none() | st.tuples(st.integers(-1, 320), st.integers(-1, 320)))
    keys = None if window else draw(st.none() | st.integers(1, 300))
    lengths = draw(st.none() | st.lists(st.integers(-2, 310), min_size=batch, max_size=batch).map(tuple))
    case = Case(
        batch=batch,
        queries=queries,
        keys=keys,
        heads=group * kv_heads,
        kv_heads=kv_heads,
        dim=draw(st.integers(1, 130)),
        dtype=draw(st.sampled_from(DTYPES)),
        lengths=lengths,
        lengths_dtype=draw(st.sampled_from((torch.int32, torch.int64))),
        window=window,
        layout=draw(st.sampled_from(("fused", "plain", "heads first", "inner"))),
        poison=draw(st.booleans()),
        seed=draw(st.integers(0, 999)),
    )
    check(judge(case))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_reaches_only_who_sees_it(instruction_set, dtype):
    """Under a window a NaN is hidden from some rows of a block and seen by others; the reference says which."""

    def results(inputs: dict[str, Tensor], case: Case) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in inputs.values()]
        out = run(case, dict(zip("qkv", leaves, strict=True)))
        upstream = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(dtype)
        return [out, *torch.autograd.grad(out, leaves, upstream)]

    case = Case(batch=1, queries=200, heads=2, kv_heads=1, dim=24, window=(9, 4), dtype=dtype)
    for name, row, value in (("k", 60, torch.nan), ("v", 61, torch.nan), ("v", 130, -torch.inf), ("q", 90, torch.nan)):
        inputs = {name: t.detach() for name, t in case.inputs().items()}
        inputs[name] = inputs[name].clone()
        inputs[name][:, row, 0, 3] = value
        ours = results(inputs, case)
        with presto_kernels.use_backend("reference"):
            expected = results(inputs, case)
        assert any(not t.isfinite().all() for t in expected)
        for got, right in zip(ours, expected, strict=True):
            # An infinity may come out as NaN; nothing else may differ in where it is finite.
            assert torch.equal(got.isfinite(), right.isfinite())
            finite = right.isfinite()
            tolerance = 50 * torch.finfo(dtype).eps
            torch.testing.assert_close(got[finite], right[finite], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "case",
    [
        Case(queries=301, heads=4, kv_heads=2, dim=40),
        Case(queries=700, batch=1, heads=6, kv_heads=6, window=(17, 17), dim=64),
        Case(queries=90, keys=300, lengths=(290, 7), dim=80),
    ],
    ids=("grouped", "window", "cross"),
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_on_every_run_and_thread_count(case, dtype):
    case = replace(case, dtype=dtype)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            inputs = case.inputs()
            out = run(case, inputs)
            seen.append([out, *torch.autograd.grad(out.float().square().sum(), list(inputs.values()))])
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_every_layout_gives_the_same_bits():
    layouts = {}
    for layout in ("plain", "heads first", "inner"):
        inputs = replace(Case(queries=70, dim=40, dtype=torch.bfloat16), layout=layout).inputs()
        if not layouts:
            layouts["inputs"] = [t.detach() for t in inputs.values()]
        for t, same in zip(inputs.values(), layouts["inputs"], strict=True):
            t.detach().copy_(same)
        out = run(Case(), inputs)
        upstream = torch.ones((), dtype=out.dtype).expand_as(out)  # every stride 0
        layouts[layout] = [out, *torch.autograd.grad(out, list(inputs.values()), upstream)]
    for layout in ("heads first", "inner"):
        assert all(torch.equal(a, b) for a, b in zip(layouts["plain"], layouts[layout], strict=True))


def test_the_log_of_the_sum_of_exponentials(instruction_set):
    """What the operator gives beside the result, -inf where a row sees no key."""
    case = Case(batch=3, queries=50, keys=300, lengths=(300, 0, 17), dim=20, scale=-0.4, layout="plain")
    q, k, v = (t.detach() for t in case.inputs().values())
    out, lse = torch.ops.presto_kernels.attention(q, k, v, case.key_lengths(), -1, -1, -0.4)
    s = torch.einsum("bihd,bjhd->bhij", q.double(), k.double()) * -0.4
    right = s.masked_fill(~case.visible()[:, None], -torch.inf).logsumexp(-1)
    assert lse.dtype == torch.float32 and lse.shape == (3, 2, 50)
    assert (lse[1] == -torch.inf).all() and not out[1].any()
    torch.testing.assert_close(lse[[0, 2]].double(), right[[0, 2]], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("batch, queries, keys", [(0, 5, 5), (2, 0, 7), (2, 5, 0), (0, 0, 0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_to_attend_to(batch, queries, keys, dtype):
    q = torch.randn(batch, queries, 4, 16, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(batch, keys, 2, 16, dtype=dtype, requires_grad=True) for _ in range(2))
    out = presto_kernels.attention(q, k, v)
    assert out.shape == q.shape and not out.any()
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert [g.shape for g in gradients] == [q.shape, k.shape, v.shape]
    assert not any(g.any() for g in gradients)


def test_very_large_scores_stay_finite(instruction_set):
    """The greatest score is taken off before the power, whatever block of keys it stands in."""
    for dtype in DTYPES:
        case = Case(batch=1, queries=30, keys=600, dim=16, dtype=dtype, scale=30.0, layout="plain")
        check(judge(case))
        inputs = case.inputs()
        with torch.no_grad():
            for j in (3, 290, 599):
                inputs["k"][:, j] *= j
        check(judge_inputs(case, inputs))


def judge_inputs(case: Case, inputs: dict[str, Tensor]) -> list:
    """The output alone, of inputs that are not the case's own."""
    from presto_kernels.testing.attention import oracle, plain
    from presto_kernels.testing.tolerance import within

    wide = {name: t.detach().double() for name, t in inputs.items()}
    eps = torch.finfo(case.dtype).eps
    truth, usual = oracle(case, wide), plain(case, inputs)
    return [within("out", run(case, inputs), truth, usual, rowwise=False, eps=eps)]


def test_a_long_sequence_with_a_window():
    """65536 positions: rows at both ends and in the middle."""
    n, left, right = 65536, 5, 300
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 1, 8, generator=generator) for _ in range(3))
    out = presto_kernels.attention(q, k, v, window=(left, right))
    for i in (0, 3, 479, 480, n // 2, n - 301, n - 1):
        keys = slice(max(0, i - left), i + right + 1)
        p = torch.softmax(k[0, keys, 0].double() @ q[0, i, 0].double() * 8**-0.5, 0)
        torch.testing.assert_close(out[0, i, 0].double(), p @ v[0, keys, 0].double(), rtol=1e-5, atol=1e-6)


def test_a_tensor_that_does_not_fit_is_refused():
    """By the operators themselves, as they would read past its end."""
    q, k = torch.randn(2, 5, 4, 16), torch.randn(2, 7, 2, 16)
    operators = torch.ops.presto_kernels
    with pytest.raises(RuntimeError, match="v has a wrong shape"):
        operators.attention(q, k, k[:, :6], None, -1, -1, 1.0)
    with pytest.raises(RuntimeError, match="k has not q's dtype"):
        operators.attention(q, k.bfloat16(), k, None, -1, -1, 1.0)
    with pytest.raises(RuntimeError, match="a multiple of k's"):
        operators.attention(q[:, :, :3], k, k, None, -1, -1, 1.0)
    with pytest.raises(RuntimeError, match=r"key_lengths must be \[B\]"):
        operators.attention(q, k, k, torch.ones(3, dtype=torch.int32), -1, -1, 1.0)
    with pytest.raises(RuntimeError, match="key_lengths must be int32 or int64"):
        operators.attention(q, k, k, torch.ones(2), -1, -1, 1.0)
    out, lse = operators.attention(q, k, k, None, -1, -1, 1.0)
    with pytest.raises(RuntimeError, match="lse is not that of the forward"):
        operators.attention_backward(out, q, k, k, out, lse[:1], None, -1, -1, 1.0)
    with pytest.raises(RuntimeError, match="grad_out has a wrong shape"):
        operators.attention_backward(out[:, :4], q, k, k, out, lse, None, -1, -1, 1.0)
