"""A copy of another library's Oobleck that runs fastest: weight norm folded, Snake's exponentials taken."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

from presto_kernels.integrations.oobleck.anatomy import Anatomy, Naming, Unfit, study
from presto_kernels.oobleck import Chain, Conv, Snake


@dataclass(frozen=True, eq=False)
class Source:
    """What a copy is made of.

    objects: modules, their classes and their tensors, held so that no others become them.
    marks: where each tensor lies and how often it was changed.
    """

    objects: tuple[object, ...]
    tensors: tuple[Tensor, ...]
    marks: tuple[tuple[object, ...], ...]

    def is_still(self, other: Source) -> bool:
        same = len(self.objects) == len(other.objects) and all(map(operator.is_, self.objects, other.objects))
        return same and self.marks == other.marks


class Folded:
    """A copy, or ``why_not``."""

    def __init__(self, source: Source, chain: Chain | None, *, ends_in_tanh: bool = False, why_not: str = "") -> None:
        self.source, self.chain, self.ends_in_tanh, self.why_not = source, chain, ends_in_tanh, why_not
        # A tensor may be given other memory (``to`` does); what it had stays taken, so that its address says something.
        self.memory = [tensor.detach() for tensor in source.tensors]


def source_of(coder: nn.Module) -> Source:
    """Raises Unfit where somebody listens inside, or where changes of the weights cannot be noticed."""
    objects: list[object] = []
    tensors: list[Tensor] = []
    for module in coder.modules():
        if module is coder:
            continue
        if module._forward_hooks or any(not isinstance(h, WeightNorm) for h in module._forward_pre_hooks.values()):
            raise Unfit("a hook on a module inside")
        if "forward" in module.__dict__:
            raise Unfit("the forward of a module inside was replaced on the object")
        objects += [module, type(module)]
        tensors += [tensor for tensor in module._parameters.values() if tensor is not None]
    for tensor in tensors:
        if type(tensor) not in (nn.Parameter, Tensor):
            raise Unfit(f"its weights are {type(tensor).__name__}s")
        if tensor.is_inference():
            raise Unfit("its weights were made in inference mode, where changes are not counted")
    marks = tuple((tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device) for tensor in tensors)
    return Source((*objects, *tensors), tuple(tensors), marks)


def folded(naming: Naming, coder: nn.Module, source: Source, kept: Folded | None) -> Folded:
    """``kept`` where it is of this source; else a new copy, in the memory of the kept one where that fits."""
    if kept is not None and kept.source.is_still(source):
        return kept
    if source.tensors and source.tensors[0].is_cuda and torch.cuda.is_current_stream_capturing():
        raise Unfit("captured as a CUDA graph before it was called")
    try:
        anatomy = study(naming, coder)
    except Unfit as why:
        return Folded(source, None, why_not=str(why))
    chain = _laid_out(anatomy, source.tensors[0])
    old = kept.chain if kept is not None else None
    # A CUDA graph reads the copy where it lies: it stays there as long as its sizes do.
    chain = old if old is not None and _description(old) == _description(chain) else chain
    return Folded(source, _filled(chain, anatomy, coder, source.tensors[0]), ends_in_tanh=anatomy.ends_in_tanh)


def _laid_out(anatomy: Anatomy, like: Tensor) -> Chain:
    """The chain, still on the meta device, in the dtype of the weights, and as it is read where they are."""
    chain = anatomy.chain.to(like.dtype)
    for layer in chain.modules():
        if isinstance(layer, Snake):  # sin(alpha x) asks more of alpha than bf16 has
            layer.to(torch.promote_types(like.dtype, torch.float32))
        if isinstance(layer, Conv) and not like.is_cpu:
            layer.weight = nn.Parameter(layer.weight.contiguous())
    return chain.requires_grad_(False)


def _description(chain: Chain) -> list[tuple[object, ...]]:
    """All there is to a chain but its device and what its tensors hold."""
    return [(name, t.dtype, t.shape, t.stride()) for name, t in chain.named_parameters()]


def _filled(chain: Chain, anatomy: Anatomy, coder: nn.Module, like: Tensor) -> Chain:
    wide = torch.promote_types(like.dtype, torch.float32)
    with torch.inference_mode(False), torch.no_grad():
        if next(chain.parameters()).device != like.device:
            chain.to_empty(device=like.device)
        ours = dict(chain.named_parameters())
        for name, tensor in anatomy.tensors(coder, lambda tensor: tensor.to(wide)):
            ours[name].copy_(tensor)
        for module in coder.modules():  # leaves the weight that a call of the original leaves, which deepcopy can copy
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, WeightNorm):
                    hook(module, ())
    return chain
