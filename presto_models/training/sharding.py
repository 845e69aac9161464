"""Tensors that may be shards (DTensor, under FSDP2), handled alike."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from presto_models.dit import CrossAttention, DiT


def local(tensor: Tensor) -> Tensor:
    """This process's part, sharing memory; a plain tensor is all there is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on its device.  A collective call for a shard."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensor: Tensor) -> Tensor:
    """A copy of all of it, on the CPU.  A collective call for a shard."""
    return whole(tensor.detach()).to("cpu", copy=True)


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The whole ``tensor``, which every process has, on ``like``'s device and split as ``like`` is."""
    tensor = tensor.to(like.device, like.dtype)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def shard_parts(module: nn.Module, names: Sequence[str], mesh: DeviceMesh, low: torch.dtype | None) -> None:
    """Fully shard (FSDP2) every submodule whose own name is in ``names``, then what is left of ``module`` as one unit.

    Weights are dropped again after each forward, the outermost unit's too: averaged weights come and go between steps,
    and a unit that stayed whole would not see them.

    Args:
        low: the dtype weights are gathered and used in, None: their own; gradients are summed in fp32.  Inputs are not
            cast: noise levels stay fp32, and the model casts what it wants itself.
    """
    # Keys and values are views of one projection.  FSDP warns of views, since one changed in place would lose its hook;
    # nothing here changes them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for name, part in module.named_modules():
        if name.rsplit(".", 1)[-1] in names:
            fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
            if isinstance(part, CrossAttention):  # keys and values are made by a method of their own
                register_fsdp_forward_method(part, "keys_values")
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    if isinstance(module, DiT):  # samplers compute what does not depend on x before they walk
        register_fsdp_forward_method(module, "precompute")
