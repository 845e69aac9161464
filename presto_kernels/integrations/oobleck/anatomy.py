"""What another library's Oobleck is made of, checked layer by layer: then our chain of layers computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

from presto_kernels.integrations.modules import class_name
from presto_kernels.oobleck import (
    Chain,
    Conv,
    Part,
    ResidualUnit,
    converted,
    decoder_chain,
    encoder_chain,
    factors,
    fold,
    parts,
)

_ENDS = {"torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"}
_TORCH = frozenset(
    {
        *_ENDS,
        "torch.nn.modules.container.ModuleDict",
        "torch.nn.modules.container.ModuleList",
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.conv.Conv1d",
        "torch.nn.modules.conv.ConvTranspose1d",
        "torch.nn.utils.parametrizations._WeightNorm",
        "torch.nn.utils.parametrize.ParametrizationList",
        "torch.nn.utils.parametrize.ParametrizedConv1d",
        "torch.nn.utils.parametrize.ParametrizedConvTranspose1d",
    }
)


class Unfit(Exception):
    """Why a module, or a call of it, is left to the original."""


@dataclass(frozen=True)
class Naming:
    """How a library makes its encoder or decoder.

    project: "diffusers" or "tools": which of a :class:`Part`'s names.
    side: "encoder" or "decoder".
    blocks: the classes of its blocks, whose forward we know.  snake: that of its activation.
    """

    project: str
    side: str
    blocks: frozenset[str]
    snake: str

    def layer(self, part: Part) -> str:
        """A part's name in the encoder or decoder itself."""
        return getattr(part, self.project).removeprefix(f"{self.side}.")

    def levels(self, coder: Any) -> int:
        """How many blocks there are: all but the convolutions at both ends, and what follows the last block."""
        if self.project == "diffusers":
            return len(coder.block)
        return len(coder.layers) - (3 if self.side == "encoder" else 4)

    def end(self, levels: int) -> set[str]:
        """Where a tanh or nothing may follow the last convolution."""
        return {f"layers.{levels + 3}"} if (self.project, self.side) == ("tools", "decoder") else set()


@dataclass(frozen=True)
class Anatomy:
    """An Oobleck of another library, and our chain that computes the same.

    chain: on the meta device.  layers: our parts and their names there.
    """

    chain: Chain
    layers: tuple[tuple[Part, str], ...]
    ends_in_tanh: bool

    def tensors(self, coder: nn.Module, take: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The chain's tensors by name, made of what ``take`` makes of the coder's."""
        given = _parameters(coder)
        for part, layer in self.layers:
            names = _names(part, layer, given)
            theirs = {
                which: fold(take(given[found[0]]), take(given[found[1]])) if len(found) == 2 else take(given[found[0]])
                for which, found in names.items()
            }
            for own, tensor in converted(part, theirs):
                yield own.partition(".")[2], tensor


def study(naming: Naming, coder: nn.Module) -> Anatomy:
    """Raises Unfit where it is not Oobleck to the letter, or its convolutions have more to them than weight norm."""
    modules = {path: module for path, module in coder.named_modules() if module is not coder}
    for path, module in modules.items():
        _check_class(naming, path, module)
    levels = naming.levels(coder)
    layers = tuple((part, naming.layer(part)) for part in parts(levels) if part.own.startswith(naming.side))
    convolutions = {path for path, module in modules.items() if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)}
    snakes = {path for path, module in modules.items() if class_name(module) == naming.snake}
    ends = {path for path, module in modules.items() if class_name(module) in _ENDS}
    if levels < 1 or convolutions | snakes != {layer for _, layer in layers} or ends != naming.end(levels):
        raise Unfit("its layers are not those of Oobleck")
    chain = _chain(naming, [(part, modules[layer]) for part, layer in layers])
    for part, layer in layers:
        _check_layer(naming, part, layer, modules[layer], chain)
    anatomy = Anatomy(chain, layers, any(isinstance(modules[path], nn.Tanh) for path in ends))
    _check_tensors(anatomy, coder)
    return anatomy


def _check_class(naming: Naming, path: str, module: nn.Module) -> None:
    if class_name(module) not in _TORCH | naming.blocks | {naming.snake}:
        raise Unfit(f"its {path} is {_an(type(module).__name__)}")
    if class_name(module) == naming.snake and not holds_logarithms(module):
        raise Unfit(f"its {path} holds alpha and beta themselves")
    hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)]
    if hooks and (len(hooks) > 1 or hooks[0].name != "weight" or hooks[0].dim != 0):
        raise Unfit(f"its {path} has a weight norm of another kind")
    if isinstance(module, nn.utils.parametrize.ParametrizationList) and (
        len(module) > 1 or getattr(module[0], "dim", None) != 0
    ):
        raise Unfit(f"its {path} has more parametrizations than weight norm, or one of another kind")


def holds_logarithms(snake: Any) -> bool:
    return bool(snake.logscale if hasattr(snake, "logscale") else snake.alpha_logscale)


def _chain(naming: Naming, found: list[tuple[Part, Any]]) -> Chain:
    """Our chain of the same sizes, on the meta device."""
    kinds = {"snake": nn.Module, "up": nn.ConvTranspose1d}
    if not all(isinstance(module, kinds.get(part.kind, nn.Conv1d)) for part, module in found):
        raise Unfit("its layers are not those of Oobleck")
    changes = [module for part, module in found if part.kind in ("up", "down")]
    strides = [module.stride[0] for module in changes]
    if any(stride % 2 for stride in strides):
        raise Unfit(f"its strides {strides} are not all even: the original loses a sample at an odd one")
    ends = [module for part, module in found if part.kind.startswith("conv") and ".conv1." not in part.own]
    with torch.device("meta"):
        if naming.side == "encoder":
            widths = [changes[0].in_channels, *(module.out_channels for module in changes)]
            return encoder_chain(ends[0].in_channels, widths, strides, ends[1].out_channels)
        widths = [changes[-1].out_channels, *(module.in_channels for module in reversed(changes))]
        return decoder_chain(ends[0].in_channels, widths, strides[::-1], ends[1].out_channels)


def _check_layer(naming: Naming, part: Part, layer: str, module: Any, chain: Chain) -> None:
    """A convolution goes over the positions that ours goes over."""
    if part.kind == "snake":
        return
    ours = chain.get_submodule(part.own.rpartition(".")[0].partition(".")[2])
    if isinstance(ours, ResidualUnit):
        wanted = 1, 1, 0, 1
    elif isinstance(ours, Conv):
        wanted = ours.weight.shape[2], 1, ours.reach, ours.dilation
    else:
        stride = int(ours.stride)  # type: ignore[arg-type]
        wanted = 2 * stride, stride, stride // 2, 1
    given = module.kernel_size[0], module.stride[0], module.padding[0], module.dilation[0]
    if given != wanted or module.groups != 1 or module.padding_mode != "zeros" or module.output_padding[0]:
        raise Unfit(f"its {layer} has kernel, stride, padding and dilation {given} where Oobleck has {wanted}")
    by_hook = any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values())
    if by_hook != hasattr(module, "weight_g") or (is_parametrized(module) and not is_parametrized(module, "weight")):
        raise Unfit(f"its {layer} has a weight norm of another kind")


def _check_tensors(anatomy: Anatomy, coder: nn.Module) -> None:
    given = _parameters(coder)
    due = {name for part, layer in anatomy.layers for found in _names(part, layer, given).values() for name in found}
    if due != set(given):
        raise Unfit(f"its parameters are not those of Oobleck: {', '.join(sorted(due ^ set(given))[:3])}")
    if len({(tensor.device, tensor.dtype) for tensor in given.values()}) > 1:
        raise Unfit("its parameters have several dtypes or devices")
    ours = dict(anatomy.chain.named_parameters())
    for name, tensor in anatomy.tensors(coder, lambda tensor: tensor.detach().to("meta")):
        if tensor.shape != ours[name].shape:
            raise Unfit(f"a weight becomes {list(tensor.shape)} where Oobleck has {list(ours[name].shape)}")


def _parameters(coder: nn.Module) -> dict[str, Tensor]:
    return dict(coder.named_parameters(remove_duplicate=False))


def _names(part: Part, layer: str, given: dict[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Of each of a part's tensors, what it is made of among those given: one, or the two of weight norm."""
    return {
        which: (factors(layer, given) if which == "weight" else None) or (f"{layer}.{which}",) for which in part.tensors
    }


def _an(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
