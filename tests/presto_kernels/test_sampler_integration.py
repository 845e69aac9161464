"""What PyTorch asks of the sampler's operators: opcheck, fullgraph compile, no recompile over lengths or seeds."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import presto_kernels
from presto_kernels import _library
from presto_kernels.ops.sampler import operators
from presto_kernels.testing.sampler import Case

pytestmark = pytest.mark.skipif(not _library.has_cpu_kernels, reason=f"no CPU kernels: {_library.error}")
OPERATORS = torch.ops.presto_kernels
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
LAYOUTS = ["plain", "permuted", "sliced", "columns"]


def tensors(op: str, layout: str, dtype: torch.dtype) -> list[torch.Tensor]:
    return [t.detach() for t in Case(op, shape=(2, 5, 24), layout=layout, dtype=dtype).inputs().values()]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_edm_denoise(layout, dtype):
    f, x, sigma = tensors("edm_denoise", layout, dtype)
    torch.library.opcheck(OPERATORS.edm_denoise.default, (f, x, sigma, 0.5, 0.002), test_utils=CHECKS)
    code = operators.DTYPE_CODES[dtype]
    for needs in (0b111, 0b001, 0b100):
        arguments = (x, f, x, sigma, 0.5, 0.002, code, needs)
        torch.library.opcheck(OPERATORS.edm_denoise_backward.default, arguments, test_utils=CHECKS)
    arguments = (x, None, None, sigma, 0.5, 0.0, operators.DTYPE_CODES[torch.float16], 0b011)
    torch.library.opcheck(OPERATORS.edm_denoise_backward.default, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_renoise(layout, dtype):
    x0, sigma = tensors("renoise", layout, dtype)
    each = torch.tensor([3, -4])
    for sigmas, seeds, offsets in ((None, None, None), (sigma, each, None), (sigma, None, each)):
        arguments = (x0, sigmas, 0.7, seeds, -9, offsets, 3, 0.5)
        torch.library.opcheck(OPERATORS.renoise.default, arguments, test_utils=CHECKS)
        arguments = (x0, sigma, seeds, -9, offsets, 3)
        torch.library.opcheck(OPERATORS.renoise_backward.default, arguments, test_utils=CHECKS)


def step(f, x, sigma, seed, offset):
    x0 = presto_kernels.edm_denoise(f, x * 2, sigma)
    x = presto_kernels.renoise(x0, sigma * 0.5, seed=seed, offset=offset, signal=0.9)
    return presto_kernels.renoise(x, 0.3, seed=seed, offset=3)


def leaves(tokens: int = 9) -> list[torch.Tensor]:
    return [torch.randn(2, tokens, 8), torch.randn(2, tokens, 8), torch.rand(2) + 0.1]


@pytest.mark.parametrize("backend", [None, "reference"])
def test_fullgraph_compile_forward_and_backward(backend):
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    given = leaves()
    with presto_kernels.use_backend(backend):
        for draw in ((5, 1), (torch.tensor([5, -6]), torch.tensor([1, 2])))[: 1 if backend else 2]:
            results = []
            for function in (step, compiled):
                wanted = [t.clone().requires_grad_() for t in given]
                y = function(*wanted, *draw)
                results.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
            for ours, theirs in zip(*results, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_inductor_takes_the_ops_as_they_are():
    torch._dynamo.reset()
    given = leaves()
    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(compiled(*given, 5, 1), step(*given, 5, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_one_compile_serves_a_sweep_of_odd_lengths(training):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    compiles = []
    for tokens in (7, 9, 33, 101, 1379):
        given = [t.requires_grad_(training) for t in leaves(tokens)]
        y = compiled(*given, 11, 2)
        if training:
            torch.autograd.grad(y.sum(), given)
        compiles.append(counter.frame_count)
    assert compiles == [compiles[0]] * 5


@pytest.mark.parametrize("dynamic", [True, None])
def test_another_seed_and_offset_compile_nothing_new(dynamic):
    """A number is symbolic with dynamic=True, and from its second value on where torch finds out for itself."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=counter)
    given, compiles = leaves(), []
    for seed, offset in ((11, 2), (12, 3), (2**40, 4), (99, 2**31), (2**63 - 1, 7)):
        assert torch.equal(compiled(*given, seed, offset), step(*given, seed, offset))
        compiles.append(counter.frame_count)
    settled = 0 if dynamic else 1
    assert compiles[settled:] == [compiles[settled]] * (5 - settled)


@pytest.mark.parametrize("seed", [-5, 2**64 - 5])
def test_compiled_seeds_of_either_sign(seed):
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    given = leaves()
    assert torch.equal(compiled(*given, seed, 2), step(*given, -5, 2))


def test_the_backward_stays_on_the_implementation_of_its_forward():
    """use_backend may have ended by the time backward runs."""
    f, x, sigma = (t.requires_grad_() for t in leaves())
    called = []
    original = operators.operator
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "operator", lambda *names: (called.append(names), original(*names))[1])
        with presto_kernels.use_backend("cpu"):
            y = presto_kernels.renoise(presto_kernels.edm_denoise(f, x, sigma), sigma, seed=1, offset=1)
        with presto_kernels.use_backend("reference"):
            y.sum().backward()
    assert sorted(called[2:]) == [("cpu", "edm_denoise_backward"), ("cpu", "renoise_backward")]
