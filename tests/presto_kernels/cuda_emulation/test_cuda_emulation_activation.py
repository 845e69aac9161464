"""The CUDA kernels of the activations, run without a GPU on the emulation of ``include/cuda_runtime.h`` and compared
with float64, forward and backward, on every path."""

from __future__ import annotations

import ctypes

import pytest
import torch
from emulated import build, needs_compiler
from test_cuda_emulation import BF16, CODES, F16, F32, Output, close, strided
from torch import Tensor

import presto_kernels
from presto_kernels import _library
from presto_kernels.ops.activation import reference

pytestmark = needs_compiler

ACTS = {"silu": 0, "gelu": 1, "sinpi": 2}
FORWARD, SHUFFLED = 0, 2


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    loaded = build("activation", tmp_path_factory.mktemp("emulation"))
    loaded.snake_backward.restype = ctypes.c_int64
    return loaded


def describe(t: Tensor) -> ctypes.Array:
    batch, row = (t.stride(0), t.stride(1)) if t.dim() == 3 else (0, t.stride(0))
    return (ctypes.c_int64 * 4)(t.data_ptr(), CODES[t.dtype], batch, row)


def numbers(*values: int) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)


def draw(*shape: int, dtype: torch.dtype, pad: int = 0, skew: int = 0, seed: int = 0) -> Tensor:
    return strided((2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype), pad, skew)


def check_glu(library, batch, tokens, dim, dtype, act="silu", gate_first=False, pad=0, skew=0) -> str:
    """The launches of a forward and a backward that are right, and the same in whatever order threads run."""
    x = draw(batch, tokens, 2 * dim, dtype=dtype, pad=pad, skew=skew)
    grad = draw(batch, tokens, dim, dtype=dtype, pad=pad, skew=skew, seed=1)
    shape = numbers(batch, tokens, dim, ACTS[act], int(gate_first))
    wide = x.double().requires_grad_()
    right = reference.glu(wide, act, gate_first)
    (right_dx,) = torch.autograd.grad(right, wide, grad.double())
    seen = []
    for order in (FORWARD, SHUFFLED):
        library.set_order(order)
        y, dx = Output((batch, tokens, dim), dtype), Output((batch, tokens, 2 * dim), dtype)
        assert library.glu_forward(shape, describe(x), y.pointer) == 0
        assert library.glu_backward(shape, describe(grad), describe(x), dx.pointer) == 0
        seen.append((y.take(), dx.take()))
        close(seen[-1][0], right.detach(), "y")
        close(seen[-1][1], right_dx, "dx", slack=8)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    launches = library.take_launches().decode().split(";")
    assert launches[:2] == launches[2:4]
    return ";".join(launches[:2])


def check_snake(
    library, batch, channels, length, dtype, alpha_dtype=F32, beta_dtype=F32, pad=0, skew=0, wanted="xab"
) -> str:
    """The same for snake; ``wanted``: which gradients are."""
    x = draw(batch, channels, length, dtype=dtype, pad=pad, skew=skew)
    grad = draw(batch, channels, length, dtype=dtype, pad=pad, skew=skew, seed=1)
    alpha = (draw(2 * channels, dtype=F32, seed=2).abs() + 0.5).to(alpha_dtype)[::2]
    beta = (draw(channels, dtype=F32, seed=3).abs() + 0.5).to(beta_dtype)
    shape, parameters = numbers(batch, channels, length), (describe(alpha), describe(beta))
    wide = [t.double().requires_grad_() for t in (x, alpha, beta)]
    right = reference.snake(*wide)
    right_gradients = torch.autograd.grad(right, wide, grad.double())
    seen = []
    for order in (FORWARD, SHUFFLED):
        library.set_order(order)
        y = Output((batch, channels, length), dtype)
        assert library.snake_forward(shape, describe(x), *parameters, y.pointer) == 0
        outputs = {
            letter: Output(tuple(t.shape), t.dtype) if letter in wanted else None
            for letter, t in zip("xab", (x, alpha, beta), strict=True)
        }
        pointers = [o.pointer if o else None for o in outputs.values()]
        arguments = (shape, describe(grad), describe(x), *parameters, *pointers)
        size = library.snake_backward(*arguments, None)
        assert (size > 0) == ("a" in wanted or "b" in wanted)
        workspace = Output((max(size, 1),), F32)
        assert library.snake_backward(*arguments, workspace.pointer) == 0
        workspace.take()
        seen.append([y.take(), *(o.take() for o in outputs.values() if o)])
        close(seen[-1][0], right.detach(), "y", slack=16)
        given = [g for letter, g in zip("xab", right_gradients, strict=True) if letter in wanted]
        for name, got, oracle in zip(wanted, seen[-1][1:], given, strict=True):
            close(got, oracle, f"d{name}", slack=64 if name == "x" else 256)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    return library.take_launches().decode()


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("gate_first", [False, True])
def test_glu(library, dtype, act, gate_first):
    vectors = 16 // dtype.itemsize
    # 72 columns are 18 or 9 threads a row, and so 14 or 28 rows a block
    assert check_glu(library, 2, 33, 72, dtype, act, gate_first).startswith(
        f"{-(-66 // (256 // (72 // vectors)))},1,{72 // vectors},"
    )
    # an odd width: one element at a time, 8 a thread
    assert check_glu(library, 2, 5, 73, dtype, act, gate_first).startswith("1,1,10,25")


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("dim", [1, 2, 7, 8, 9, 255, 256, 257, 2816, 4104, 4105])
def test_glu_widths(library, dtype, dim):
    check_glu(library, 1, 2, dim, dtype)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(
    ("pad", "skew", "vectors"), [(0, 0, True), (16, 8, True), (8, 0, True), (1, 0, False), (0, 1, False)]
)
def test_glu_strides(library, dtype, pad, skew, vectors):
    launches = check_glu(library, 3, 4, 40, dtype, pad=pad, skew=skew)
    if dtype == F32:  # in bf16 both kernels have 5 threads a row
        assert (",10," in launches) == vectors


@pytest.mark.skipif(not _library.has_cpu_kernels, reason=f"no CPU kernels: {_library.error}")
def test_the_gate_s_sine_is_that_of_the_cpu_bit_for_bit(library):
    x = torch.stack([torch.ones(4096), torch.linspace(-9.0, 9.0, 4096)]).reshape(1, 1, -1)
    y = Output((1, 1, 4096), F32)
    assert library.glu_forward(numbers(1, 1, 4096, ACTS["sinpi"], 0), describe(x), y.pointer) == 0
    library.take_launches()
    with presto_kernels.use_backend("cpu"):
        assert torch.equal(presto_kernels.singlu(x), y.take())


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("length", [64, 63, 1, 4104, 8200, 16393])
def test_snake(library, dtype, length):
    check_snake(library, 2, 2, length, dtype)


@pytest.mark.parametrize("parameters", [(F32, BF16), (F16, F32), (BF16, BF16)])
def test_snake_parameters(library, parameters):
    check_snake(library, 2, 5, 96, BF16, *parameters)


@pytest.mark.parametrize("wanted", ["x", "a", "b", "ab", "xb"])
def test_snake_gradients_that_are_wanted(library, wanted):
    check_snake(library, 2, 3, 96, F32, wanted=wanted)
    check_snake(library, 2, 3, 95, BF16, wanted=wanted)


@pytest.mark.parametrize(("pad", "skew"), [(16, 8), (1, 0), (0, 1)])
def test_snake_strides(library, pad, skew):
    check_snake(library, 3, 2, 64, BF16, pad=pad, skew=skew)


def test_snake_sums_over_many_samples(library):
    """More terms than the block that adds them has threads."""
    check_snake(library, 300, 1, 8, F32)


def test_nothing_is_launched_for_nothing(library):
    x, one = torch.zeros(1, 1, 8), torch.ones(1)
    assert library.glu_forward(numbers(0, 3, 4, 0, 0), describe(x), None) == 0
    assert library.snake_forward(numbers(2, 1, 0), describe(x), describe(one), describe(one), None) == 0
    assert library.take_launches() == b""
