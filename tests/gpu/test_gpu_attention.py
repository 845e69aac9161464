"""Attention on a GPU: right, deterministic, capturable, and its work bounded by what is seen."""

from dataclasses import replace

import pytest
import torch

import presto_kernels
from presto_kernels.testing import check
from presto_kernels.testing.attention import Case, cases, judge, run
from presto_kernels.testing.tolerance import within

BIG = Case(batch=2, queries=1379, heads=16, kv_heads=16, dim=64, dtype=torch.bfloat16)
MASKS = (
    BIG,
    replace(BIG, keys=77, kv_heads=4),
    replace(BIG, lengths=(1379, 700), poison=True),
    replace(BIG, window=(17, 17)),
    replace(BIG, window=(-1, 0), lengths=(1379, 12), poison=True),
)


@pytest.fixture(autouse=True)
def on_triton():
    with presto_kernels.use_backend("triton"):
        yield


@pytest.mark.parametrize("case", cases(), ids=str)
def test_error_is_at_most_twice_that_of_pytorch(case):
    check(judge(case, device="cuda"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", MASKS, ids=str)
def test_real_sizes(case, dtype):
    check(judge(replace(case, dtype=dtype), device="cuda"))


@pytest.mark.parametrize("dim", [32, 40, 48, 64, 72, 80, 96, 112, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_head_dims(dim, dtype):
    check(judge(replace(BIG, queries=333, heads=4, kv_heads=2, dim=dim, dtype=dtype), device="cuda"))


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 127, 128, 129, 1000, 4097])
def test_lengths(tokens):
    check(judge(replace(BIG, batch=1, heads=2, kv_heads=2, queries=tokens), device="cuda"))
    check(judge(replace(BIG, batch=1, heads=2, kv_heads=2, queries=tokens, window=(17, 17)), device="cuda"))


def test_a_long_sequence_with_a_window():
    """N = 65536: rows of the middle against the reference of their neighbourhood."""
    q, k, v = (torch.randn(1, 65536, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    out = presto_kernels.attention(q, k, v, window=(17, 17))
    near = slice(30000, 30100)
    with presto_kernels.use_backend("reference"):
        right = presto_kernels.attention(*(t[:, near].double() for t in (q, k, v)), window=(17, 17))
        plain = presto_kernels.attention(*(t[:, near] for t in (q, k, v)), window=(17, 17))
    inner = slice(17, -17)
    ours = out[:, near][:, inner]
    check([within("out", ours, right[:, inner], plain[:, inner], rowwise=False, eps=2**-7)])


def results(case: Case) -> list[torch.Tensor]:
    inputs = case.inputs("cuda")
    out = run(case, inputs)
    return [out, *torch.autograd.grad(out.float().square().sum(), list(inputs.values()))]


@pytest.mark.parametrize("case", MASKS, ids=str)
def test_gradients_are_bitwise_the_same_on_every_run(case):
    first = results(case)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, results(case), strict=True))


@pytest.mark.parametrize("case", MASKS, ids=str)
def test_a_cuda_graph_replays_forward_and_backward(case):
    case = replace(case, poison=False)
    inputs, lengths = case.inputs("cuda"), case.key_lengths("cuda")
    leaves = list(inputs.values())

    def step():
        with presto_kernels.use_backend("triton"):
            out = presto_kernels.attention(*leaves, key_lengths=lengths, window=case.window)
        return [out, *torch.autograd.grad(out.float().square().sum(), leaves)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    fresh = replace(case, seed=1).inputs("cuda")
    with torch.no_grad():
        for name, t in inputs.items():
            t.copy_(fresh[name])
        if lengths is not None:
            lengths.copy_(torch.tensor([3, 1000], device="cuda"))  # they are read when the graph runs
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


@pytest.mark.parametrize("which", ["k", "v"])
def test_under_a_window_nan_stays_with_those_who_see_it(which):
    case = replace(BIG, batch=1, queries=300, heads=2, kv_heads=2, window=(9, 4))
    clean, wrong = case.inputs("cuda"), case.inputs("cuda")
    with torch.no_grad():
        wrong[which][0, 140] = torch.nan
    a, b = run(case, clean), run(case, wrong)
    see = torch.zeros(300, dtype=torch.bool, device="cuda")
    see[136:150] = True
    assert torch.equal(a[:, ~see], b[:, ~see]) and b[:, see].isnan().all()
    grads = torch.autograd.grad(b[:, ~see].float().sum(), list(wrong.values()))
    assert all(grad[:, 170:].isfinite().all() and grad[:, :110].isfinite().all() for grad in grads)


def test_one_triton_compile_serves_a_sweep_of_lengths():
    from presto_kernels.ops.attention import triton_jit

    kernels = [k for k in vars(triton_jit).values() if hasattr(k, "device_caches")]

    def variants() -> int:
        return sum(len(cache[0]) for k in kernels for cache in k.device_caches.values())

    counts = []
    for tokens in (33, 1, 7, 16, 100, 1379, 1536):
        judge(replace(BIG, queries=tokens, lengths=(tokens, 5)), device="cuda")
        counts.append(variants())
    assert counts == [counts[0]] * len(counts)


def test_more_than_two_to_the_31_elements():
    """A row stride that 32 bits do not hold."""
    storage = torch.zeros(2**31 + 4096, dtype=torch.bfloat16, device="cuda")
    q = storage.as_strided((1, 2, 1, 64), (0, 2**31, 64, 1))
    q.copy_(torch.randn(1, 2, 1, 64))
    with torch.no_grad():
        assert torch.equal(presto_kernels.attention(q, q, q), presto_kernels.attention(*[q.contiguous()] * 3))


@pytest.mark.parametrize("case", [BIG, replace(BIG, keys=77, kv_heads=4)], ids=str)
def test_sdpa_is_right_where_it_is_taken(case):
    with presto_kernels.use_backend(attention="sdpa"):
        check(judge(case, device="cuda", backward=False, implementation=lambda c, i: run(c, detached(i))))


def detached(inputs):
    return {name: t.detach() for name, t in inputs.items()}


@pytest.mark.parametrize("case", [BIG, replace(BIG, lengths=(1379, 0), poison=True)], ids=str)
def test_flash_attn_is_right_where_it_is_taken(case):
    inputs = detached(case.inputs("cuda"))
    with presto_kernels.use_backend(attention="flash"):
        try:
            run(case, inputs)
        except ValueError as refused:
            pytest.skip(str(refused))
        check(judge(case, device="cuda", backward=False, implementation=lambda c, i: run(c, detached(i))))


def test_auto_takes_a_fast_implementation_and_never_the_reference():
    q = torch.randn(1, 64, 2, 64, device="cuda", dtype=torch.bfloat16)
    lengths = torch.tensor([5], device="cuda")
    with presto_kernels.use_backend():
        for options in ({}, {"window": (3, 3)}, {"key_lengths": lengths}):
            assert presto_kernels.explain("attention", q, q, q, **options).backend in ("flash", "sdpa", "triton")


def test_norm_and_rotary_in_the_prologue():
    from presto_kernels.ops.attention import triton_kernels  # noqa: F401  (registers the operator)

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 333, 4, 64, generator=generator).bfloat16().cuda() for _ in range(3))
    angles = torch.rand(333, 16, generator=generator).cuda()
    cos, sin, weight = angles.cos(), angles.sin(), torch.rand(64, generator=generator).bfloat16().cuda()

    def normed(x, dtype):
        x = x.to(dtype)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight.to(dtype)
        a, b, rest = x[..., :16], x[..., 16:32], x[..., 32:]
        c, s = cos.to(dtype)[:, None], sin.to(dtype)[:, None]
        return torch.cat([a * c - b * s, b * c + a * s, rest], -1)

    lengths = torch.tensor([333, 100], device="cuda")
    ours = torch.ops.presto_kernels.attention_qk_norm_rope_triton(
        q, k, v, cos, sin, weight, weight, 1e-6, lengths, -1, -1, 0.125
    )
    with presto_kernels.use_backend("reference"):
        right, plain = (
            presto_kernels.attention(
                normed(q, dtype).to(last), normed(k, dtype).to(last), v.to(last), key_lengths=lengths, scale=0.125
            )
            for dtype, last in ((torch.float64, torch.float64), (torch.float32, torch.bfloat16))
        )
    check([within("out", ours, right, plain, rowwise=False, eps=2**-7)])


def test_fullgraph_compile_on_a_gpu():
    torch._dynamo.reset()
    inputs = detached(BIG.inputs("cuda"))
    compiled = torch.compile(lambda **t: presto_kernels.attention(**t, window=(17, 17)), fullgraph=True)
    assert torch.equal(compiled(**inputs), run(replace(BIG, window=(17, 17)), inputs))
