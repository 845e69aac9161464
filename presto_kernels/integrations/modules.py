"""What a module is, and who listens to it."""

from __future__ import annotations

from torch import nn


def class_name(thing: object) -> str:
    """``module.Class`` of an object; of an accelerated module, the class that it had."""
    cls = type(thing)
    cls = cls.__dict__.get("_original", cls)
    return f"{cls.__module__}.{cls.__qualname__}"


def hooked(*modules: nn.Module | None) -> bool:
    """Whether more than a module's own ``forward`` happens when it is called, which a path past it would miss.

    Hooks, and a ``forward`` replaced on the object: libraries that offload or cast a module's weights bring them into
    place in there, and outside of it the weights mean nothing.
    """
    return any(
        m is not None
        and bool(
            m._forward_hooks
            or m._forward_pre_hooks
            or m._backward_hooks
            or m._backward_pre_hooks
            or "forward" in m.__dict__
        )
        for m in modules
    )
