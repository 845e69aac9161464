"""``OobleckEncoder`` and ``OobleckDecoder`` of diffusers and of stable-audio-tools."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from presto_kernels.integrations.oobleck.anatomy import Naming, Unfit, study
from presto_kernels.integrations.oobleck.folding import Folded, Source, folded, source_of
from presto_kernels.integrations.oobleck.snake import transformed
from presto_kernels.integrations.swapping import Accelerated
from presto_kernels.oobleck import Conv, whole


class FusedCoder(Accelerated):
    """``forward`` on :mod:`presto_kernels.oobleck`: in the layout, and on a CPU in the tiles, that run fastest.

    It runs a copy of the weights with weight norm folded and Snake's exponentials taken, made at the first call: **one
    more copy of the weights in memory**.  Every call looks whether the weights are what they were, by their identity,
    address, dtype and the count PyTorch keeps of their changes, so that an optimizer's step, a loaded checkpoint,
    ``to`` or an edit in place is noticed; an edit behind that count (through ``.data``) is not.  The copy belongs to no
    state dict and goes with ``restore`` and with ``to``; copies and pickles of the module are made without it.

    Where gradients are recorded the original runs, with the fused Snake.
    """

    naming: ClassVar[Naming]

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        original = super().forward
        if torch.compiler.is_compiling():
            return original(*inputs, **named)
        try:
            x, copy = _ready(self, (*inputs, *named.values()))
        except Unfit as why:
            self._presto.pass_on(self, str(why))
            return original(*inputs, **named)
        assert copy.chain is not None
        with torch.no_grad(), self._presto.settings.running():
            y = whole(copy.chain, x).contiguous()
            return y.tanh() if copy.ends_in_tanh else y

    def _presto_reads(self) -> object:
        """The copy, up to date where it lies; another one, or none, where that is gone."""
        kept = self.__dict__.get("_presto_kept")
        if kept is None:
            return None
        with contextlib.suppress(Unfit):  # a hook, say, which no graph would call
            kept = self._presto_kept = folded(self.naming, self, source_of(self), kept)
        return kept.chain

    def _apply(self, *inputs: Any, **named: Any) -> Any:
        """``to`` and the like: the copy would stay where the weights were."""
        _let_go(self)
        return super()._apply(*inputs, **named)


def _ready(self: Any, given: tuple[Any, ...]) -> tuple[Tensor, Folded]:
    """The input, and the copy to run it on; raises Unfit."""
    if len(given) != 1 or type(given[0]) not in (Tensor, nn.Parameter):
        raise Unfit("called with more or something else than one tensor")
    (x,) = given
    if transformed(x):
        raise Unfit("a transform of torch.func, or forward-mode differentiation")
    if x.device.type not in ("cpu", "cuda"):
        raise Unfit(f"a tensor on {x.device.type}")
    if torch.is_autocast_enabled(x.device.type):
        raise Unfit("autocast")
    try:
        source = source_of(self)
    except Unfit:
        _let_go(self)
        raise
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *source.tensors)):
        raise Unfit("gradients are recorded: only its Snake is fused")
    copy = self._presto_kept = folded(self.naming, self, source, self.__dict__.get("_presto_kept"))
    if copy.chain is None:
        raise Unfit(copy.why_not)
    _check_input(x, copy, source)
    return x, copy


def _let_go(self: Any) -> None:
    self.__dict__.pop("_presto_kept", None)


def _check_input(x: Tensor, copy: Folded, source: Source) -> None:
    """Whatever it is that does not fit, the original says it in its own words."""
    assert copy.chain is not None
    first = next(layer for layer in copy.chain.modules() if isinstance(layer, Conv))
    weight = source.tensors[0]
    if (x.dtype, x.device) != (weight.dtype, weight.device):
        raise Unfit("an input of another dtype or device than the weights")
    if x.dim() != 3 or x.shape[1] != first.weight.shape[1] or not x.numel() or copy.chain.length(x.shape[-1]) < 1:
        raise Unfit("an input of another shape, or too short")


def fits(naming: Naming, module: nn.Module) -> str | None:
    try:
        study(naming, module)
    except Unfit as why:
        return str(why)
    return None
