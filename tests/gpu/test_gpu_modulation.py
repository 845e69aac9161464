"""The AdaLN family on a GPU: right, deterministic, capturable, and the same from Triton and CUDA."""

from dataclasses import replace

import pytest
import torch

import presto_kernels
from presto_kernels.testing import check
from presto_kernels.testing.modulation import OPS, Case, cases, judge, run

BACKENDS = ("cuda", "triton", "reference")
KERNELS = ("cuda", "triton")


def big(op: str, dtype: torch.dtype = torch.bfloat16, norm: str = "layer") -> Case:
    """With norm dyt residual2 is there too, where the op has it."""
    affine = None if op == "gated_residual" else "D"
    case = Case(op, batch=2, tokens=1379, dim=1024, dtype=dtype, weight=affine, bias=affine, norm=norm)
    return replace(case, residual2="BND") if norm == "dyt" else case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.op}-{case.dtype}-{case.tokens}x{case.dim}")
def test_error_is_at_most_twice_that_of_pytorch(case, backend):
    with presto_kernels.use_backend(backend):
        check(judge(case, device="cuda"))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dim", [8, 1000, 1024, 1536, 2048, 4096, 5000, 8192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["layer", "dyt"])
def test_widths(backend, dim, dtype, norm):
    for op in OPS:
        case = replace(big(op, dtype, norm), tokens=45, dim=dim)
        with presto_kernels.use_backend(backend):
            check(judge(case, device="cuda"))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tokens", [1, 7, 1379, 5000])
@pytest.mark.parametrize("norm", ["layer", "dyt"])
def test_lengths(backend, op, tokens, norm):
    with presto_kernels.use_backend(backend):
        check(judge(replace(big(op, norm=norm), tokens=tokens), device="cuda"))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("norm", ["layer", "dyt"])
def test_gradients_are_bitwise_the_same_on_every_run(backend, op, norm):
    # In fp32 all of the sums shows.
    case = replace(big(op, norm=norm), modulation_dtype=torch.float32, residual2="D" if norm == "dyt" else None)
    seen = []
    for _ in range(4):
        inputs = case.inputs("cuda")
        with presto_kernels.use_backend(backend):
            outputs = run(case, inputs)
            loss = sum(y.float().square().sum() for y in outputs)
            seen.append([*outputs, *torch.autograd.grad(loss, [t for t in inputs.values() if t is not None])])
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("norm", ["layer", "dyt"])
def test_triton_and_cuda_agree(op, norm):
    """Both round fp32 results to bf16; they may differ by an ulp where fp32 sums are ordered differently."""
    outputs = []
    for backend in KERNELS:
        with presto_kernels.use_backend(backend):
            outputs.append(run(big(op, norm=norm), big(op, norm=norm).inputs("cuda")))
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=1e-3)
        assert (ours != theirs).float().mean() < 0.02


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("norm", ["layer", "dyt"])
def test_a_cuda_graph_replays_forward_and_backward(backend, op, norm):
    case = big(op, norm=norm)
    inputs = case.inputs("cuda")
    leaves = [t for t in inputs.values() if t is not None]

    def step():
        with presto_kernels.use_backend(backend):
            outputs = run(case, inputs)
        return [*outputs, *torch.autograd.grad(sum(y.float().square().sum() for y in outputs), leaves)]

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
    expected = step()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.parametrize("backend", KERNELS)
def test_the_current_stream_is_used(backend):
    """Work on a side stream must wait for what that stream did before it."""
    x = torch.zeros(2, 4096, 1024, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), presto_kernels.use_backend(backend):
        torch.cuda._sleep(50_000_000)
        x.fill_(1)
        y = presto_kernels.gated_residual(x, x, None)
    stream.synchronize()
    assert bool((y == 2).all())


def test_one_triton_compile_serves_a_sweep_of_lengths():
    from presto_kernels.ops.modulation import triton_jit

    kernels = [k for k in vars(triton_jit).values() if hasattr(k, "device_caches")]
    assert kernels

    def variants() -> int:
        return sum(len(cache[0]) for k in kernels for cache in k.device_caches.values())

    with presto_kernels.use_backend("triton"):
        counts = []
        for tokens in (33, 1, 7, 16, 100, 1379, 1380, 1536):
            judge(replace(big("gated_residual_adaln"), tokens=tokens), device="cuda")
            counts.append(variants())
    assert counts == [counts[0]] * len(counts)


@pytest.mark.parametrize("backend", KERNELS)
def test_more_than_two_to_the_31_elements(backend):
    tokens = 2**21 + 1
    x = torch.randn(1, 1, 1024, dtype=torch.bfloat16, device="cuda").expand(1, tokens, 1024)
    with torch.no_grad(), presto_kernels.use_backend(backend):
        h = presto_kernels.adaln_modulate(x, None, None)
    assert torch.equal(h[0, 0], h[0, -1]) and torch.equal(h[0, 0], h[0, tokens // 2])


def test_auto_takes_a_kernel_on_a_gpu():
    x = torch.randn(2, 5, 64, device="cuda")
    assert presto_kernels.explain("adaln_modulate", x, None, None).backend in KERNELS
    assert set(KERNELS) <= set(presto_kernels.available_backends()["adaln_modulate"])


@pytest.mark.parametrize("norm", ["layer", "dyt"])
def test_fullgraph_compile_on_a_gpu(norm):
    torch._dynamo.reset()
    case = big("gated_residual_adaln", norm=norm)
    inputs = {k: None if t is None else t.detach() for k, t in case.inputs("cuda").items()}
    compiled = torch.compile(lambda **t: presto_kernels.gated_residual_adaln(**t, norm=norm), fullgraph=True)
    for ours, theirs in zip(compiled(**inputs), run(case, inputs), strict=True):
        assert torch.equal(ours, theirs)
