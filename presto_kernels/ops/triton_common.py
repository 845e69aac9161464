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

from presto_kernels._ops import add_op_namespace_prefix

INTERPRETING = bool(triton.knobs.runtime.interpret)
INTERPRETED = tl.constexpr(INTERPRETING)


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
        torch.library.impl(add_op_namespace_prefix(name), device, function)
