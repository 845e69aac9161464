"""How a family's operators meet PyTorch: one schema and one fake for every implementation of them.

The schemas are defined here, in Python, so that they are there without the compiled library; that registers its CPU
and CUDA kernels under the same names.  Triton's kernels have operators of their own, ``<name>_triton``, with the same
schema and fake, so that ``torch.compile`` sees the same thing whichever runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from presto_kernels._ops import add_op_namespace_prefix

SCHEMAS: dict[str, str] = {}
"""Operator name (without namespace) -> schema."""


def define(name: str, schema: str, fake: Callable[..., Any], *, triton: bool = True) -> None:
    """Define ``presto_kernels::name`` and, with ``triton``, ``presto_kernels::name_triton``."""
    for full in (name, f"{name}_triton") if triton else (name,):
        SCHEMAS[full] = schema
        torch.library.define(add_op_namespace_prefix(full), schema)
        torch.library.register_fake(add_op_namespace_prefix(full), fake)
