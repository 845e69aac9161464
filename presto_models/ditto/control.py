"""What a control is: a feature of the music and how far it is from what was asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_models.ditto.scene import Made, Scene

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Control(ABC):
    """What the music is asked to do, as a user says it: curves, forms, recordings.

    Args:
        weight: of its error in the sum that is minimised; above 0.
        threshold: an error that is good enough; None: there is none.  Optimisation of a sample ends where every
            control that has one has reached it.

    :meth:`bind` puts it beside what is being made; whatever is wrong with it is said there, before the first step.
    """

    weight: float = 1.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight must be above 0 and finite, got {self.weight}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be finite or None, got {self.threshold}")

    @abstractmethod
    def bind(self, scene: Scene) -> Bound:
        """This control for that scene, its target on the scene's device.

        Raises:
            ValueError, TypeError: it does not fit the scene; names the argument, what came and what fits.
        """


class Bound(ABC):
    """A control beside what is being made.

    Attributes:
        name: of the control, ``"intensity"``, for tables, plots and errors.
        weight, threshold: the control's.
        target: y, of the feature's shape without the batch: ``[frames]``, ``[frames, 12]``, ``[frames, frames]`` ...
        kind: what it speaks about: ``"loudness"``, ``"melody"``, ``"structure"``, ``"latents"``, ``"text"``.
        spans: (from, to) in seconds of the parts of the music it speaks about.

    Two controls of one kind whose spans overlap contradict each other unless their targets are the same.

    :meth:`feature` and :meth:`error` are differentiable and ask the device nothing (no ``.item()``, no shape from
    data), so that a CUDA graph can hold them.
    """

    name: str
    weight: float
    threshold: float | None
    target: Tensor
    kind: str
    spans: tuple[Span, ...]

    @abstractmethod
    def feature(self, made: Made) -> Tensor:
        """f(music), ``[B, ...]``, fp32."""

    @abstractmethod
    def error(self, made: Made) -> Tensor:
        """How far the music is from the target, ``[B]``, fp32, in the control's own units; smaller is better."""

    def known(self) -> tuple[Tensor, Tensor] | None:
        """Where this control decides the latents themselves, by the squared distance to them on a mask: (mask ``[N]``
        of zeros and ones, values ``[N, C]`` in the units of x; where the mask is 0 they are passed over), on the
        scene's device.  None for every other control.
        """
        return None

    def figures(self, made: Made) -> dict[str, Tensor]:
        """What else a person wants to know of it, name to ``[B]``, such as an accuracy."""
        return {}


def bind_all(controls: Control | Sequence[Control], scene: Scene) -> list[Bound]:
    """Every control bound, their names made different from each other.

    Raises:
        TypeError, ValueError: there is none, one does not fit the scene, or two contradict each other.
    """
    controls = [controls] if isinstance(controls, Control) else list(controls)
    if not controls:
        raise ValueError("controls must hold at least one control, got none")
    for control in controls:
        if not isinstance(control, Control):
            raise TypeError(f"controls must be presto_models.ditto controls, got {type(control).__name__}")
    with torch.no_grad():
        bound = [control.bind(scene) for control in controls]
    for index, one in enumerate(bound):
        for other in bound[:index]:
            _check_agree(other, one)
        if taken := sum(before.name.split(" ")[0] == one.name for before in bound[:index]):
            one.name = f"{one.name} {taken + 1}"
    return bound


def _check_agree(one: Bound, other: Bound) -> None:
    if one.kind != other.kind:
        return
    overlap = [(max(a, c), min(b, d)) for a, b in one.spans for c, d in other.spans if max(a, c) < min(b, d)]
    same = one.target.shape == other.target.shape and torch.equal(one.target, other.target)
    if overlap and not same:
        start, stop = overlap[0]
        raise ValueError(
            f"controls contradict each other: {one.name} and {other.name} both ask for {one.kind} from {start:g} to "
            f"{stop:g} s, and for different ones; leave one out, or give them parts that do not overlap"
        )
