"""What it takes to bench an op."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench import counting, machine
from bench.cli import BadOption

Shape = tuple[int, ...]
Outputs = tuple[Tensor, ...]
Normal = Callable[..., Tensor]
"""normal(*sizes, dtype=None): standard normal numbers in the case's dtype, or in this one."""


def _no_constants(shape: Shape, device: torch.device) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Op:
    """An op as the bench calls it, and what it is compared with.

    Attributes:
        name: on the command line; a variant of a public op has a name of its own.
        axes: what the numbers of a shape are, such as "BxNxD".
        shapes: those it is measured at unless others are asked for.
        tensors: what it is differentiated in, by the names of the public op; both callables take them in this order.
        eager: PyTorch as a good user writes it; its compiled form is the second baseline.
        forward, backward: what must be moved and computed, from the shape and the bytes of an element.
        make: the tensors of a shape.
        constants: keyword arguments that no gradient reaches: tables, options.
        public: the public op's name where it is not `name`.
        baselines: more implementations to stand beside; `cuda_baselines` only there.
        oracle: what results are checked against, in float64 and in the case's dtype; None: `eager`.
        unchecked: implementations that draw other numbers and cannot be compared.
        default: whether it runs when no ops are named.
        small: further shapes, for `tune` alone: where a call costs as much as the work, another may win.
    """

    name: str
    axes: str
    shapes: tuple[str, ...]
    tensors: tuple[str, ...]
    results: tuple[str, ...]
    eager: Callable[..., Outputs]
    presto: Callable[..., Outputs]
    forward: Callable[[Shape, int], counting.Count]
    backward: Callable[[Shape, int], counting.Count] | None
    make: Callable[[Shape, Normal], Outputs]
    constants: Callable[[Shape, torch.device], dict[str, Any]] = _no_constants
    public: str = ""
    baselines: Mapping[str, Callable[..., Outputs]] = field(default_factory=dict)
    cuda_baselines: Mapping[str, Callable[..., Outputs]] = field(default_factory=dict)
    oracle: Callable[..., Outputs] | None = None
    unchecked: tuple[str, ...] = ()
    default: bool = True
    small: tuple[str, ...] = ()

    def parse(self, text: str) -> Shape:
        """ "2x1379x1024" as numbers; `BadOption` naming the axes where it does not fit."""
        sizes = text.split("x")
        if len(sizes) != len(self.axes.split("x")) or not all(size.isdigit() and int(size) > 0 for size in sizes):
            raise BadOption(f"--shapes: {text!r} is no {self.axes} such as {self.shapes[0]}, which {self.name} takes")
        return tuple(map(int, sizes))


@dataclass(frozen=True)
class Case:
    """One thing to measure: an op on a shape in a dtype, forward or backward."""

    op: Op
    shape: Shape
    dtype: str
    backward: bool
    device: torch.device

    @property
    def count(self) -> counting.Count:
        formula = self.op.backward if self.backward else self.op.forward
        assert formula is not None
        return formula(self.shape, machine.DTYPES[self.dtype].itemsize)

    @property
    def key(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.op.name} {shape} {self.dtype} {'backward' if self.backward else 'forward'}"

    def inputs(self, seed: int) -> Outputs:
        """Random tensors, leaves that require a gradient where there is one to measure."""
        random = torch.Generator(self.device).manual_seed(seed)

        def normal(*sizes: int, dtype: torch.dtype | None = None) -> Tensor:
            made = torch.randn(*sizes, generator=random, device=self.device)
            return made.to(machine.DTYPES[self.dtype] if dtype is None else dtype)

        return tuple(t.detach().requires_grad_(self.backward) for t in self.op.make(self.shape, normal))

    def constants(self) -> dict[str, Any]:
        return self.op.constants(self.shape, self.device)
