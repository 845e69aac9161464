"""Finds and loads the compiled library, silently: a package without it still imports and runs.

``error`` says why there is none (None when it is there); ``env_report`` prints it, importing never does.
"""

from __future__ import annotations

from pathlib import Path

import torch

from presto_kernels._ops import ops

_CUDA_CODE, _CUDA_TORCH = 1, 2
INSTRUCTION_SETS = ("none", "avx2", "avx512", "avx512bf16")


def _load() -> str | None:
    if hasattr(ops, "build_info"):
        return None  # a library that kernel-builder made is part of _ops
    found = sorted(Path(__file__).parent.glob("_C*.so"))
    if not found:
        return "it was not built: no C++ compiler at install time, or a source checkout where nothing was built"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as problem:
        return f"{found[0].name} does not load with torch {torch.__version__}: {problem.__cause__ or problem}"
    return None


error: str | None = _load()
loaded: bool = error is None

# Read once: an operator that returns an int would become a symbolic number inside torch.compile.
_build_info: int = int(ops.build_info()) if loaded else 0

instruction_set: str = INSTRUCTION_SETS[_build_info >> 2]
"""Vector instructions the CPU kernels run on here: "avx512bf16", "avx512", "avx2", or "none"."""

has_cpu_kernels: bool = instruction_set != "none"
"""Whether CPU kernels can run on this processor (x86-64 with AVX2, FMA and F16C, or better)."""

has_cuda_code: bool = bool(_build_info & _CUDA_CODE)
"""Whether the library was built with nvcc."""

has_cuda_kernels: bool = has_cuda_code and bool(_build_info & _CUDA_TORCH)
"""Whether CUDA kernels are there and this torch can launch them."""


def limit_instruction_set(name: str) -> str:
    """Let the CPU kernels use at most ``name``, for tests and comparisons; returns what they use now.

    Raises ``ValueError`` for an unknown name.  A set this processor has not is left out: the best one it has is used.
    """
    if name not in INSTRUCTION_SETS[1:]:
        raise ValueError(f"name: {name!r} is no instruction set; choose from {', '.join(INSTRUCTION_SETS[1:])}")
    limit = INSTRUCTION_SETS.index(name)
    return INSTRUCTION_SETS[ops.limit_instruction_set(limit)]
