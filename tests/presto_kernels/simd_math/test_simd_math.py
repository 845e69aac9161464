"""csrc/cpu/simd_math.h against float64, in ulps, on every instruction set this processor has."""

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from presto_kernels import _library

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"),
    pytest.mark.skipif(not _library.has_cpu_kernels, reason=f"no CPU kernels: {_library.error}"),
]


@pytest.fixture(scope="module", params=["avx2", "avx512"])
def library(request, tmp_path_factory) -> ctypes.CDLL:
    """avx512bf16 has the arithmetic of avx512."""
    if request.param == "avx512" and not _library.instruction_set.startswith("avx512"):
        pytest.skip("this processor has no avx512")
    target = tmp_path_factory.mktemp("simd_math") / f"{request.param}.so"
    flags = ["-O2", "-std=c++20", "-fPIC", "-shared", "-fno-math-errno", "-w", f"-DPRESTO_ISA={request.param}"]
    flags += [f"-I{CSRC}", f"-I{CSRC / 'cpu'}", *(AVX2 if request.param == "avx2" else AVX512)]
    subprocess.run(["g++", *flags, str(HERE / "simd_math.cpp"), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def apply(library: ctypes.CDLL, name: str, x: torch.Tensor) -> torch.Tensor:
    y = torch.full_like(x, math.nan)
    function = getattr(library, f"map_{name}")
    function(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(x.numel()))
    return y


def ulps(y: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Distance in units of the last place of the right result; below the normal numbers, of the smallest of those."""
    size = right.abs().float().clamp(min=2.0**-126)
    return (y.double() - right).abs() / (torch.nextafter(size, torch.tensor(math.inf)) - size).double()


def sin_pi(x: torch.Tensor) -> torch.Tensor:
    """Of what x lies beyond the nearest whole number: pi x itself would be rounded."""
    whole = x.round()
    return torch.sin(math.pi * (x - whole)) * (1 - 2 * (whole % 2))


def cos_pi(x: torch.Tensor) -> torch.Tensor:
    half = (x - 0.5).round() + 0.5  # where it is 0
    return torch.sin(math.pi * (half - x)) * (1 - 2 * ((half - 0.5) % 2))


FUNCTIONS = {
    "exp": (torch.exp, [(-87.0, 88.7), (-1.0, 1.0)], 1.1),
    "sigmoid": (torch.sigmoid, [(-80.0, 20.0), (-1.0, 1.0)], 2.6),
    "tanh": (torch.tanh, [(-12.0, 12.0), (-1.0, 1.0), (-1e-3, 1e-3), (-1e-37, 1e-37)], 1.4),
    "tanh_slope": (lambda x: 1 / torch.cosh(x) ** 2, [(-40.0, 40.0), (-1.0, 1.0)], 2.9),
    "erf": (torch.erf, [(-4.2, 4.2), (-1.0, 1.0), (-1e-3, 1e-3)], 1.4),
    **{
        name: (function, [(-1.0, 1.0), (-4.0, 4.0), (-1e3, 1e3), (-131072.0, 131072.0), (-1e9, 1e9)], 1.6)
        for name, function in (("sin", torch.sin), ("sin_of_both", torch.sin), ("cos_of_both", torch.cos))
    },
    **{
        name: (function, [(-1.0, 1.0), (-1e-3, 1e-3), (-1e3, 1e3), (-131072.0, 131072.0), (-3e7, 3e7)], 2.0)
        for name, function in (("sin_pi", sin_pi), ("cos_pi", cos_pi))
    },
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors(library, name):
    function, ranges, allowed = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(0)
    for low, high in ranges:
        x = torch.empty(300_007).uniform_(low, high, generator=generator)
        error = ulps(apply(library, name, x), function(x.double()))
        assert error.max() <= allowed, (low, high, float(error.max()), float(x[error.argmax()]))


@pytest.mark.parametrize(("name", "quarter"), [("sin", 0), ("sin_of_both", 0), ("cos_of_both", 1)])
def test_near_the_zeros(library, name, quarter):
    """The floats next to every multiple of pi, or odd one of pi / 2, that is reduced here, where digits cancel."""
    n = 2 * torch.arange(0, 41700, dtype=torch.float64) + quarter
    x = (n * (math.pi / 2)).float()
    x = torch.cat([x, torch.nextafter(x, torch.tensor(math.inf)), torch.nextafter(x, torch.tensor(-math.inf))])
    function = torch.cos if quarter else torch.sin
    assert ulps(apply(library, name, x), function(x.double())).max() <= 1.6


def test_whole_and_half_numbers_of_half_turns(library):
    x = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, -0.5, -1.0, 4194303.5, 8388607.0, 16777216.0, 3e38, 1e-40])
    sine = torch.tensor([0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 0.0, 0.0, math.pi * 1e-40])
    cosine = torch.tensor([1.0, 0.0, -1.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(apply(library, "sin_pi", x), sine, rtol=0.0, atol=1e-44)
    assert torch.equal(apply(library, "cos_pi", x), cosine)
    unbounded = torch.tensor([math.nan, math.inf, -math.inf])
    assert apply(library, "sin_pi", unbounded).isnan().all() and apply(library, "cos_pi", unbounded).isnan().all()


def test_what_is_not_finite_and_what_is_out_of_range(library):
    x = torch.tensor([math.nan, math.inf, -math.inf, 200.0, -200.0, 88.8, -104.0, 0.0, 3e38, 1e-40])
    for name in ("sin", "sin_of_both", "cos_of_both"):
        function = torch.cos if name == "cos_of_both" else torch.sin
        torch.testing.assert_close(apply(library, name, x), function(x.double()).float(), equal_nan=True)
    for name in ("exp", "sigmoid", "tanh", "erf"):
        right = getattr(torch, name)(x)
        torch.testing.assert_close(apply(library, name, x), right, equal_nan=True, rtol=1e-6, atol=1e-38)
