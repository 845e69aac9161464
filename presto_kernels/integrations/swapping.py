"""``accelerate`` and ``restore``: a module keeps being the object it is and gets another class.

The new class is made of ours, whose ``forward`` runs the fused ops, and of the one the module has, whose ``forward`` is
left for the calls that ours does not take.  So nothing but ``forward`` changes: parameters and their names, hooks,
``to``, ``train``, ``isinstance``, deep copies, pickles, adapters in the layers inside.  PyTorch's own parametrizations
do the same.  Classes are known by their names, so that no library is imported for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from presto_kernels.integrations.session import Session, Settings

_Model = TypeVar("_Model", bound=nn.Module)


if TYPE_CHECKING:
    _Before = nn.Module  # the module's own class, which comes after ours, is one
else:
    _Before = object


class Accelerated(_Before):
    """Stands before a module's own class: ``super().forward`` is the original."""

    _presto: Session
    _presto_kept: Any  # what a module computed from its weights, if it does; restored and copied modules are without it
    _fused: type[Accelerated]
    _original: type[nn.Module]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The original's attributes."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickles and copies name the two classes that this one is made of."""
        state = {name: value for name, value in self.__dict__.items() if name != "_presto_kept"}
        return _made_of, (self._fused, self._original), state

    def _presto_reads(self) -> object:
        """What a CUDA graph of this module reads beside its weights, brought up to date with them, or None."""
        return None


@dataclass(frozen=True)
class Swap:
    """A class that we know and what takes its place.

    target: its name, ``module.Class``.
    fused: ours.
    runs: what is fused in it, for the report.
    parameters: what its ``forward`` may be asked; a version that takes more is left alone.  None: whatever it is.
    fits: why this module cannot be taken, or None.
    children: of the module, by name, what takes the place of layers whose own class says nothing.
    """

    target: str
    fused: type[Accelerated]
    runs: str
    parameters: Set[str] | None
    fits: Callable[[Any], str | None] = lambda module: None
    children: Mapping[str, type[Accelerated]] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A module of a known class: ``why_not`` is None where it can be swapped."""

    path: str
    module: nn.Module
    fused: type[Accelerated]
    runs: str
    why_not: str | None


def accelerate(model: _Model, *, backend: str = "auto", masks: str = "faithful") -> _Model:
    """Make the modules of a model that are known run the fused ops, in place.

    Known are the transformers and decoders of diffusers, stable-audio-tools and Stable Audio 3 (``docs/accelerate.md``
    has the list).  What the model computes stays the same, to rounding: against float64 its error is at most twice the
    untouched model's.  State dict, parameter names, hooks, ``to()``, ``train()``, autograd, adapters and gradient
    checkpointing stay as they are.  A call that a fused module does not take runs as before;
    :func:`accelerate_report` says which did.  A second time changes nothing but the settings.

    Args:
        model: any module; it may itself be of a known class.
        backend: of the ops: "auto" takes the fastest there is, as :func:`use_backend` may say; or "triton", "cuda",
            "cpu", "reference".
        masks: "faithful": padding does what it does in the original, which may be less than it says (Stable Audio 3
            sets the values behind padded keys to zero and leaves the keys in the softmax).  "exact": padded keys are
            not seen.

    Returns:
        The model itself.

    Raises:
        TypeError: model is no module.  ValueError: an option is none of those above.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}{_hint(model)}")
    settings = Settings(backend, masks)
    session = next((m._presto for m in model.modules() if isinstance(m, Accelerated)), Session(settings))
    session.settings = settings
    for found in find(model):
        if found.why_not is None:
            found.module.__class__ = fused_class(found.fused, type(found.module))
    for module in model.modules():
        if isinstance(module, Accelerated):
            module._presto = session
    return model


def restore(model: _Model) -> _Model:
    """Undo :func:`accelerate`: every module has its own class again, and what was kept is let go.

    Raises:
        TypeError: model is no module.
        RuntimeError: a module was given another class since (a parametrization, say); undo that first.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be a torch.nn.Module, got {type(model).__name__}{_hint(model)}")
    accelerated = [(path, module) for path, module in model.named_modules() if isinstance(module, Accelerated)]
    for path, module in accelerated:
        if "_original" not in type(module).__dict__:
            raise RuntimeError(
                f"restore: {path or 'the model'} became a {type(module).__qualname__} after it was accelerated"
                " (a parametrization?); undo that first"
            )
    for _, module in accelerated:
        undone: Any = module
        undone.__class__ = module._original
        del undone.__dict__["_presto"]
        undone.__dict__.pop("_presto_kept", None)
    return model


def find(model: nn.Module) -> Iterator[Found]:
    """The modules of known classes that are not accelerated yet."""
    from presto_kernels.integrations.registry import SWAPS

    for path, module in model.named_modules():
        if isinstance(module, Accelerated):
            continue
        for base in type(module).__mro__:
            swap = SWAPS.get(f"{base.__module__}.{base.__qualname__}")
            if swap is not None:
                why_not = _why_not(module, base, swap)
                yield Found(path, module, swap.fused, swap.runs, why_not)
                for name, fused in swap.children.items():
                    child = getattr(module, name, None)
                    if why_not is None and child is not None and not isinstance(child, Accelerated):
                        yield Found(f"{path}.{name}".lstrip("."), child, fused, swap.runs, None)
                break


_CLASSES: dict[tuple[type, type], Any] = {}


def fused_class(fused: type[Accelerated], original: type[nn.Module]) -> Any:
    """The class of an accelerated module: ours before its own, under its own name; always the same one."""
    if (fused, original) not in _CLASSES:
        names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
        members = {**names, "_fused": fused, "_original": original}
        _CLASSES[fused, original] = type(original.__name__, (fused, original), members)
    return _CLASSES[fused, original]


def _made_of(fused: type[Accelerated], original: type[nn.Module]) -> nn.Module:
    made = fused_class(fused, original)
    module: nn.Module = made.__new__(made)
    return module


def _why_not(module: nn.Module, base: type[nn.Module], swap: Swap) -> str | None:
    if "forward" in module.__dict__:
        return "its forward was replaced on the object (a hook of accelerate?); call presto_kernels.accelerate before"
    if parametrize.is_parametrized(module):
        return "it is parametrized itself"
    if type(module).forward is not base.forward:
        return f"{type(module).__qualname__} has a forward of its own"
    unknown = set(inspect.signature(base.forward).parameters) - (swap.parameters or set()) - {"self"}
    if swap.parameters is not None and unknown:
        return f"this version's forward takes {', '.join(sorted(unknown))}, which we do not know"
    return swap.fits(module)


def _hint(model: object) -> str:
    """A pipeline is no module but holds them."""
    inside = [
        name for name in ("transformer", "model", "dit", "vae") if isinstance(getattr(model, name, None), nn.Module)
    ]
    return f"; it holds modules: {', '.join(f'.{name}' for name in inside)}" if inside else ""
