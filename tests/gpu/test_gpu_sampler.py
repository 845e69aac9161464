"""The sampler family on a GPU: right, deterministic, capturable, and the same from Triton, CUDA and the CPU."""

import pytest
import torch

import presto_kernels
from presto_kernels.ops.sampler import reference
from presto_kernels.testing import check
from presto_kernels.testing.sampler import OPS, Case, cases, judge, run

BACKENDS = ("cuda", "triton", "reference")
KERNELS = ("cuda", "triton")
LATENTS = (8, 1379, 64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.op}-{case.dtype}-{case.shape}-{case.layout}")
def test_error_is_at_most_twice_that_of_pytorch(case, backend):
    with presto_kernels.use_backend(backend):
        check(judge(case, device="cuda"))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1379, 64), LATENTS, (70000, 3), (3, 1000003)])
def test_sizes(backend, op, dtype, shape):
    with presto_kernels.use_backend(backend):
        check(judge(Case(op, shape=shape, dtype=dtype), device="cuda"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**40 + 5])
def test_the_noise_is_within_4_ulp_of_the_radius(backend, seed):
    shape = (2, 2**21)
    with presto_kernels.use_backend(backend):
        noise = presto_kernels.renoise(torch.zeros(shape, device="cuda"), 1.0, seed=seed, offset=2**32 - 2)
    signed = seed - 2**64 if seed >= 2**63 else seed
    right = reference.normal(torch.Size(shape), signed, 2**32 - 2, torch.device("cuda")).view(2, -1, 2)
    radius = right.norm(dim=2, keepdim=True)
    error = (noise.double().view(2, -1, 2) - right).abs() / 2.0 ** (torch.floor(torch.log2(radius)) - 23)
    assert error.max() <= 4


@pytest.mark.parametrize("backend", KERNELS)
def test_the_noise_is_that_of_the_cpu(backend):
    """CUDA's bit for bit: every rounding is written out.  Triton may fuse where it is free to."""
    x = torch.zeros(2, 100003)
    ours = presto_kernels.renoise(x, 1.0, seed=5, offset=3)
    with presto_kernels.use_backend(backend):
        theirs = presto_kernels.renoise(x.cuda(), 1.0, seed=5, offset=3).cpu()
    if backend == "cuda" and presto_kernels.explain("renoise", x, 1.0, seed=5, offset=3).backend == "cpu":
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=8 * 2.0**-21)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", OPS)
def test_gradients_are_bitwise_the_same_on_every_run(backend, op):
    case, seen = Case(op, shape=LATENTS, dtype=torch.bfloat16), []
    for _ in range(4):
        inputs = case.inputs("cuda")
        with presto_kernels.use_backend(backend):
            y = run(case, inputs)
            seen.append([y, *torch.autograd.grad(y.float().square().sum(), list(inputs.values()))])
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("backend", KERNELS)
def test_a_captured_step_draws_anew(backend):
    """Noise level, seed and offset are read from memory: what a replay finds there is what it uses."""
    f, x = (torch.randn(*LATENTS, device="cuda", requires_grad=True) for _ in range(2))
    sigma = torch.rand(8, device="cuda").add(0.1).requires_grad_()
    seeds, offsets = torch.arange(8, device="cuda"), torch.ones(8, dtype=torch.int64, device="cuda")

    def step():
        with presto_kernels.use_backend(backend):
            x0 = presto_kernels.edm_denoise(f, x, sigma)
            y = presto_kernels.renoise(x0, sigma, seed=seeds, offset=offsets, signal=0.5)
        return [y, *torch.autograd.grad(y.square().sum(), (f, x, sigma))]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    first = captured[0].clone()
    with torch.no_grad():
        sigma.mul_(2)
        seeds.add_(100)
        offsets.add_(1)
    graph.replay()
    expected = step()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
    assert not torch.equal(first, captured[0])


@pytest.mark.parametrize("backend", KERNELS)
def test_the_current_stream_is_used(backend):
    """Work on a side stream must wait for what that stream did before it."""
    x = torch.zeros(2, 4096, 1024, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), presto_kernels.use_backend(backend):
        torch.cuda._sleep(50_000_000)
        x.fill_(1)
        y = presto_kernels.renoise(x, 0.0, seed=0, offset=0)
    stream.synchronize()
    assert bool((y == 1).all())


def test_one_triton_compile_serves_a_sweep_of_lengths_and_seeds():
    from presto_kernels.ops.sampler import triton_jit

    kernels = [k for k in vars(triton_jit).values() if hasattr(k, "device_caches")]
    assert kernels

    def variants() -> int:
        return sum(len(cache[0]) for k in kernels for cache in k.device_caches.values())

    counts = []
    with presto_kernels.use_backend("triton"):
        for seed, tokens in enumerate((33, 1, 7, 16, 100, 1379, 1380, 1536)):
            for op in OPS:
                judge(Case(op, shape=(2, tokens, 64), seed=seed), device="cuda")
            counts.append(variants())
    assert counts == [counts[0]] * len(counts)


@pytest.mark.parametrize("backend", KERNELS)
def test_more_than_two_to_the_31_elements(backend):
    rows = 2**21 + 1
    x = torch.randn(1, 1, 1024, dtype=torch.bfloat16, device="cuda").expand(1, rows, 1024)
    with torch.no_grad(), presto_kernels.use_backend(backend):
        y = presto_kernels.edm_denoise(x, x, torch.ones(1, device="cuda"))
        assert torch.equal(y[0, 0], y[0, -1]) and torch.equal(y[0, 0], y[0, rows // 2])
        y = presto_kernels.renoise(x, 1.0, seed=4, offset=1)
    last = torch.arange(rows * 256 - 256, rows * 256)
    zero = torch.zeros_like(last)
    words = reference.philox((last, zero + 1, zero, zero), (zero + 4, zero))
    u = (words[0] >> 8).double().add(0.5) * 2.0**-24, (words[1] >> 8).double().add(0.5) * 2.0**-24
    first = (-2 * u[0].log()).sqrt() * (2 * torch.pi * u[1]).cos()
    expected = x[0, -1, ::4].double().cpu() + first
    torch.testing.assert_close(y[0, -1, ::4].double().cpu(), expected, rtol=2**-7, atol=1e-4)


def test_auto_takes_a_kernel_on_a_gpu():
    x, sigma = torch.randn(*LATENTS, device="cuda"), torch.ones(8, device="cuda")
    assert presto_kernels.explain("edm_denoise", x, x, sigma).backend in KERNELS
    assert presto_kernels.explain("renoise", x, sigma, seed=0, offset=0).backend in KERNELS


def test_fullgraph_compile_on_a_gpu():
    torch._dynamo.reset()
    f, x, sigma = (t.detach() for t in Case("edm_denoise", shape=LATENTS).inputs("cuda").values())

    def step(f, x, sigma, seed):
        return presto_kernels.renoise(presto_kernels.edm_denoise(f, x, sigma), 0.3, seed=seed, offset=1)

    compiled = torch.compile(step, fullgraph=True)
    for seed in (3, 4, 5):
        assert torch.equal(compiled(f, x, sigma, seed), step(f, x, sigma, seed))
