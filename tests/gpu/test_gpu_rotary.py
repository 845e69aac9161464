"""``qk_norm_rope`` on a GPU: right, deterministic, capturable, and the same from Triton and CUDA."""

from dataclasses import replace

import pytest
import torch

import presto_kernels
from presto_kernels.testing import check
from presto_kernels.testing.rotary import Case, cases, gradients, judge, run

BACKENDS = ("cuda", "triton", "reference")
KERNELS = ("cuda", "triton")
BIG = Case(batch=2, tokens=1379, heads=16, dtype=torch.bfloat16, bias=True)
DYT = replace(BIG, norm="dyt", rotary=32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.norm}-{case.dtype}-{case.dim}-{case.rotary}")
def test_error_is_at_most_twice_that_of_pytorch(case, backend):
    with presto_kernels.use_backend(backend):
        check(judge(case, device="cuda"))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [1, 8, 32, 64, 72, 80, 96, 128, 200, 256, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_sizes(backend, interleaved, dim, dtype):
    for rotary in {dim // 2 * 2, dim // 4 * 2}:
        case = replace(BIG, tokens=45, heads=5, k_heads=2, dim=dim, rotary=rotary, dtype=dtype, interleaved=interleaved)
        if dim == 1:
            case = replace(case, batch=1, tokens=3, heads=1, k_heads=1, eps=1.0)
        with presto_kernels.use_backend(backend):
            check(judge(case, device="cuda"))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("tokens", [1, 7, 1379, 5000])
def test_lengths(backend, tokens):
    with presto_kernels.use_backend(backend):
        check(judge(replace(BIG, tokens=tokens), device="cuda"))
        check(judge(replace(BIG, tokens=tokens, k_tokens=77, k_heads=4), device="cuda"))
        check(judge(replace(DYT, tokens=tokens), device="cuda"))


def forward_and_backward(case: Case, seed: int = 0) -> list[torch.Tensor]:
    inputs = replace(case, seed=seed).inputs("cuda")
    outputs = run(case, inputs)
    return [*outputs, *gradients(outputs, inputs, outputs).values()]


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("case", [BIG, DYT], ids=["rms", "dyt"])
def test_gradients_are_bitwise_the_same_on_every_run(backend, case):
    with presto_kernels.use_backend(backend):
        seen = [forward_and_backward(case) for _ in range(4)]
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("case", [BIG, DYT], ids=["rms", "dyt"])
def test_triton_and_cuda_agree(case):
    """Both round fp32 results to bf16; they may differ by an ulp where fp32 sums are ordered differently."""
    results = []
    for backend in KERNELS:
        with presto_kernels.use_backend(backend), torch.no_grad():
            results.append(run(case, case.inputs("cuda")))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=1e-3)
        assert (ours != theirs).float().mean() < 0.02


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("case", [BIG, DYT], ids=["rms", "dyt"])
def test_a_cuda_graph_replays_forward_and_backward(backend, case):
    inputs = case.inputs("cuda")

    def step():
        with presto_kernels.use_backend(backend):
            outputs = run(case, inputs)
            return [*outputs, *gradients(outputs, inputs, outputs).values()]

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
            if t is not None:
                t.copy_(fresh[name])
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


@pytest.mark.parametrize("backend", KERNELS)
def test_the_current_stream_is_used(backend):
    """Work on a side stream must wait for what that stream did before it."""
    q = torch.zeros(2, 4096, 16, 64, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), presto_kernels.use_backend(backend):
        torch.cuda._sleep(50_000_000)
        q.fill_(1)
        y, _ = presto_kernels.qk_norm_rope(q, None, None, None, norm=None)
    stream.synchronize()
    assert bool((y == 1).all())


def test_one_triton_compile_serves_a_sweep_of_lengths():
    from presto_kernels.ops.rotary import triton_jit

    kernels = [k for k in vars(triton_jit).values() if hasattr(k, "device_caches")]
    assert kernels

    def variants() -> int:
        return sum(len(cache[0]) for k in kernels for cache in k.device_caches.values())

    with presto_kernels.use_backend("triton"):
        counts = []
        for tokens in (33, 1, 7, 16, 100, 1379, 1380, 1536):
            forward_and_backward(replace(BIG, tokens=tokens))
            counts.append(variants())
    assert counts == [counts[0]] * len(counts)


@pytest.mark.parametrize("backend", KERNELS)
def test_more_than_two_to_the_31_elements(backend):
    tokens = 2**21 + 1
    q = torch.randn(1, 1, 16, 64, dtype=torch.bfloat16, device="cuda").expand(1, tokens, 16, 64)
    angle = torch.randn(1, 32, device="cuda").expand(tokens, 32)
    with torch.no_grad(), presto_kernels.use_backend(backend):
        y, _ = presto_kernels.qk_norm_rope(q, None, angle.cos(), angle.sin())
    assert torch.equal(y[0, 0], y[0, -1]) and torch.equal(y[0, 0], y[0, tokens // 2])


def test_auto_takes_a_kernel_on_a_gpu():
    q = torch.randn(2, 5, 2, 64, device="cuda")
    assert presto_kernels.explain("qk_norm_rope", q, q, None, None).backend in KERNELS
    assert set(KERNELS) <= set(presto_kernels.available_backends()["qk_norm_rope"])


def test_fullgraph_compile_on_a_gpu():
    torch._dynamo.reset()
    inputs = {k: None if t is None else t.detach() for k, t in BIG.inputs("cuda").items()}
    compiled = torch.compile(lambda **t: presto_kernels.qk_norm_rope(**t), fullgraph=True)
    for ours, theirs in zip(compiled(**inputs), run(BIG, inputs), strict=True):
        assert torch.equal(ours, theirs)
