"""The operators' namespace, said once.

Hugging Face's kernel-builder writes a module of this name and these two members into every kernel it packs, with a
namespace that is unique to the build, so that two versions live side by side in one process (docs/hf-kernels.md).
"""

from __future__ import annotations

import torch

ops = torch.ops.presto_kernels


def add_op_namespace_prefix(name: str) -> str:
    """``name`` with the namespace before it, as ``torch.library`` takes it."""
    return f"presto_kernels::{name}"
