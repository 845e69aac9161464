"""What the Triton kernels of every family share.  Importing this needs triton."""

# No `from __future__ import annotations`: Triton reads the annotations themselves.
import contextlib
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

INTERPRETING = bool(triton.knobs.runtime.interpret)
INTERPRETED = tl.constexpr(INTERPRETING)

# The polynomials of csrc/sincospi.h.
S0, S1, S2, S3 = (
    tl.constexpr(float.fromhex(c)) for c in ("0x1.921fb4p+0", "-0x1.4abb66p-1", "0x1.4648acp-4", "-0x1.2a5536p-8")
)
C0, C1, C2, C3 = (
    tl.constexpr(float.fromhex(c)) for c in ("-0x1.3bd3ccp+0", "0x1.03c1acp-2", "-0x1.55afbap-6", "0x1.d3edecp-11")
)
TO_WHOLE = tl.constexpr(2.0**23)


def kernel(function):
    """``triton.jit`` that compiles for no value or alignment but the constexpr ones."""
    names = [name for name, p in inspect.signature(function).parameters.items() if p.annotation is not tl.constexpr]
    return triton.jit(function, do_not_specialize=names)


@triton.jit
def round_to(value, dtype: tl.constexpr):
    """fp32 to dtype, to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        # The interpreter cuts the low bits off: add what makes that a rounding (NaN and infinity stay as they are).
        bits = value.to(tl.uint32, bitcast=True)
        bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
        rounded = bits.to(tl.float32, bitcast=True)
        value = tl.where(tl.abs(value) < float("inf"), rounded, value)
    return value.to(dtype)


@triton.jit
def tanh(x):
    """tanh of fp32, right to about 2 ulp; in plain Triton because the interpreter has no libdevice.  Near 0, where the
    digits of 1 - 2 / ... would cancel, it is a polynomial: that of csrc/cpu/simd_math.h."""
    size, square = tl.abs(x), x * x
    tail = -0.0537397004664 + square * (0.0206390507519 + square * -0.00570495193824)
    near = x + x * (square * (-0.333332806826 + square * (0.133314415812 + square * tail)))
    far = 1.0 - 2.0 / (1.0 + tl.exp(size + size))  # 1 where exp is infinite
    far = tl.where(x < 0, -far, far)
    return tl.where(size <= 0.625, near, far)


@triton.jit
def sin_cos_quarters(quadrant, z):
    """Sine and cosine of (pi / 2) (quadrant + z), |z| <= 1/2; the steps are explained in csrc/sincospi.h."""
    w = z * z
    s = z * tl.fma(tl.fma(tl.fma(w, S3, S2), w, S1), w, S0)
    c = tl.fma(tl.fma(tl.fma(tl.fma(w, C3, C2), w, C1), w, C0), w, 1.0)
    odd = (quadrant & 1) != 0
    sine = tl.where(odd, c, s)
    cosine = tl.where(odd, s, c)
    sine = tl.where((quadrant & 2) != 0, -sine, sine)
    cosine = tl.where(((quadrant + 1) & 2) != 0, -cosine, cosine)
    return sine, cosine


@triton.jit
def sin_cos_pi(x):
    """Sine and cosine of pi x for any finite fp32 x, reduced exactly; in plain Triton because the interpreter has no
    libdevice to round with."""
    half = 0.5 * tl.abs(x)
    quarters = 4.0 * (half - tl.floor(half))  # of the turn, in [0, 4)
    quadrant = (quarters + TO_WHOLE) - TO_WHOLE  # its nearest whole number
    sine, cosine = sin_cos_quarters(quadrant.to(tl.int32), quarters - quadrant)
    return tl.where(x < 0, -sine, sine), cosine


@triton.jit
def tanh_slope(x):
    """1 - tanh(x)^2 without its cancellation where tanh is near 1: q (2 - q), q = 1 - tanh|x|."""
    size = tl.abs(x)
    q = 2.0 / (1.0 + tl.exp(size + size))
    return q * (2.0 - q)


@dataclass(frozen=True)
class Launch:
    """A kernel with all that it is launched with; :mod:`presto_kernels.testing.aot` compiles from the same object."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    registers: int | None = None  # at most so many per thread
    num_stages: int | None = None  # depth of the software pipeline; None: Triton's default

    @property
    def options(self) -> dict[str, Any]:
        # Fusion is stated because Triton 3.10 changes the default.
        options = {"num_warps": self.num_warps, "maxnreg": self.registers, "enable_fp_fusion": True}
        return options if self.num_stages is None else options | {"num_stages": self.num_stages}

    def run(self) -> None:
        self.kernel[self.grid](**self.arguments, **self.options)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side, in units of a multiprocessor."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 4  # the interpreter: few, so that programs take several groups of rows


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def implement(name: str, function: Callable[..., Any]) -> None:
    """Make ``function`` the operator ``presto_kernels::name`` on CUDA, and in the interpreter on CPU tensors too."""
    for device in ("cuda", "cpu") if INTERPRETING else ("cuda",):
        torch.library.impl(f"presto_kernels::{name}", device, function)
