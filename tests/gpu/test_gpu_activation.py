"""The activations on a GPU: right, deterministic, capturable, and the same from Triton and CUDA."""

from dataclasses import replace

import pytest
import torch

import presto_kernels
from presto_kernels.testing import check
from presto_kernels.testing.activation import OPS, Case, cases, judge, run

BACKENDS = ("cuda", "triton", "reference")
KERNELS = ("cuda", "triton")
BF16 = torch.bfloat16


def big(op: str, dtype: torch.dtype = BF16) -> Case:
    if op == "snake":
        return Case(op, batch=1, rows=128, dim=110080, dtype=dtype, alpha_dtype=torch.float32, beta_dtype=torch.float32)
    return Case(op, batch=2, rows=1379, dim=2816, dtype=dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.op}-{case.dtype}-{case.rows}x{case.dim}")
def test_error_is_at_most_twice_that_of_pytorch(case, backend):
    with presto_kernels.use_backend(backend):
        check(judge(case, device="cuda"))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_the_shapes_of_a_model(backend, op, dtype):
    with presto_kernels.use_backend(backend):
        check(judge(big(op, dtype), device="cuda"))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dim", [8, 1000, 1024, 1365, 8192, 16385])
def test_widths(backend, op, dim):
    with presto_kernels.use_backend(backend):
        check(judge(Case(op, rows=33, dim=dim, dtype=BF16), device="cuda"))


@pytest.mark.parametrize("backend", KERNELS)
def test_snake_of_large_arguments(backend):
    x = torch.tensor([1e3, 1e5, 1e6, 1e9, 3e38, float("nan"), float("inf")], device="cuda")[None, None]
    with presto_kernels.use_backend(backend):
        y = presto_kernels.snake(x, torch.ones(1, device="cuda"), torch.full((1,), 1e-9, device="cuda"))
    sines = (y.double() - x.double()) * 2e-9
    right = x.double().sin().square()
    torch.testing.assert_close(sines[..., :3], right[..., :3], rtol=1e-4, atol=1e-4)
    assert y[0, 0, 5:].isnan().all()


@pytest.mark.parametrize("backend", KERNELS)
def test_singlu_of_whole_half_and_large_gates(backend):
    gate = torch.tensor([0.0, 0.5, 1.0, -0.5, 1.5, 1001.0, 4194303.5, 8388607.0, 3e38], device="cuda")
    right = torch.tensor([0.0, 1.0, 0.0, -1.0, -1.0, 0.0, -1.0, 0.0, 0.0], device="cuda")
    with presto_kernels.use_backend(backend):
        assert torch.equal(presto_kernels.singlu(torch.cat([torch.ones_like(gate), gate])), right)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", OPS)
def test_gradients_are_bitwise_the_same_on_every_run(backend, op):
    seen = []
    for _ in range(4):
        inputs = big(op).inputs("cuda")
        with presto_kernels.use_backend(backend):
            y = run(big(op), inputs)
            seen.append([y, *torch.autograd.grad(y.float().square().sum(), list(inputs.values()))])
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_triton_and_cuda_agree(op):
    """Both round fp32 results to bf16; they may differ by an ulp."""
    outputs = []
    for backend in KERNELS:
        with presto_kernels.use_backend(backend):
            outputs.append(run(big(op), big(op).inputs("cuda")))
    torch.testing.assert_close(*outputs, rtol=2**-7, atol=1e-3)
    assert (outputs[0] != outputs[1]).float().mean() < 0.02


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", OPS)
def test_a_cuda_graph_replays_forward_and_backward(backend, op):
    case = big(op)
    inputs = case.inputs("cuda")
    leaves = list(inputs.values())

    def step():
        with presto_kernels.use_backend(backend):
            y = run(case, inputs)
        return [y, *torch.autograd.grad(y.float().square().sum(), leaves)]

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
    graph.replay()
    expected = step()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.parametrize("backend", KERNELS)
def test_the_current_stream_is_used(backend):
    """Work on a side stream must wait for what that stream did before it."""
    x = torch.zeros(2, 4096, 2048, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), presto_kernels.use_backend(backend):
        torch.cuda._sleep(50_000_000)
        x.fill_(20)
        y = presto_kernels.swiglu(x)
    stream.synchronize()
    assert bool((y - 400 < 1e-3).all()) and bool((y > 399).all())


def test_one_triton_compile_serves_a_sweep_of_lengths():
    from presto_kernels.ops.activation import triton_jit

    kernels = [k for k in vars(triton_jit).values() if hasattr(k, "device_caches")]
    assert kernels

    def variants() -> int:
        return sum(len(cache[0]) for k in kernels for cache in k.device_caches.values())

    with presto_kernels.use_backend("triton"):
        counts = []
        for length in (33, 1, 7, 101, 1379, 1381, 70001):
            judge(Case("snake", dim=length, dtype=BF16), device="cuda")
            judge(Case("swiglu", rows=length, dtype=BF16), device="cuda")
            counts.append(variants())
    assert counts == [counts[0]] * len(counts)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", ["swiglu", "snake"])
def test_more_than_two_to_the_31_elements(backend, op):
    rows, width = 2**21 + 1, 1024 if op == "snake" else 2048
    x = torch.randn(1, 1, width, dtype=BF16, device="cuda").expand(1, rows, width)
    ones = torch.ones(rows, device="cuda")
    with torch.no_grad(), presto_kernels.use_backend(backend):
        y = OPS[op](x, **({"alpha": ones, "beta": ones} if op == "snake" else {}))
    assert torch.equal(y[0, 0], y[0, -1]) and torch.equal(y[0, 0], y[0, rows // 2])


def test_auto_takes_a_kernel_on_a_gpu():
    x = torch.randn(2, 5, 64, device="cuda")
    assert presto_kernels.explain("swiglu", x).backend in KERNELS
    assert set(KERNELS) <= set(presto_kernels.available_backends()["snake"])


@pytest.mark.parametrize("op", OPS)
def test_fullgraph_compile_on_a_gpu(op):
    torch._dynamo.reset()
    inputs = {k: t.detach() for k, t in Case(op, rows=33, dim=104, dtype=BF16).inputs("cuda").items()}
    compiled = torch.compile(lambda **t: OPS[op](**t), fullgraph=True)
    assert torch.equal(compiled(**inputs), OPS[op](**inputs))
