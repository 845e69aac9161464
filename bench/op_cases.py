"""The ops under test: their inputs as a model has them, eager PyTorch as a good user writes it, and what to measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import presto_kernels
from bench import counting, machine

EPS = 1e-6
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Op:
    """`tensors` names the activations and modulations in the order both callables take them."""

    name: str
    tensors: tuple[str, ...]
    results: tuple[str, ...]
    eager: Callable[..., Outputs]
    presto: Callable[..., Outputs]


@dataclass(frozen=True)
class Case:
    """One thing to measure: an op on a shape [B, N, D] in a dtype, forward or backward."""

    op: Op
    shape: tuple[int, int, int]
    dtype: str
    backward: bool
    device: torch.device

    @property
    def count(self) -> counting.Count:
        formulas = counting.BACKWARD if self.backward else counting.FORWARD
        return formulas[self.op.name](self.shape, machine.DTYPES[self.dtype].itemsize)

    @property
    def key(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.op.name} {shape} {self.dtype} {'backward' if self.backward else 'forward'}"

    def inputs(self, seed: int) -> Outputs:
        """Random activations; modulations [B, D] are `chunk()` views of one [B, 6 D] tensor, as in a DiT block."""
        batch, _, width = self.shape
        random = torch.Generator(self.device).manual_seed(seed)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=random, device=self.device).to(machine.DTYPES[self.dtype])

        modulations = dict(zip(("shift", "scale", "gate"), normal(batch, 6 * width).chunk(6, dim=-1), strict=False))
        tensors = [modulations[name] if name in modulations else normal(*self.shape) for name in self.op.tensors]
        return tuple(t.detach().requires_grad_(self.backward) for t in tensors)


def _eager_adaln_modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Outputs:
    return (F.layer_norm(x, (x.shape[-1],), eps=EPS) * (1 + scale[:, None]) + shift[:, None],)


def _eager_gated_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Outputs:
    return (x + gate[:, None] * branch,)


def _eager_gated_residual_adaln(x: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> Outputs:
    x = x + gate[:, None] * branch
    return x, F.layer_norm(x, (x.shape[-1],), eps=EPS) * (1 + scale[:, None]) + shift[:, None]


def _presto_adaln_modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Outputs:
    return (presto_kernels.adaln_modulate(x, scale, shift, eps=EPS),)


def _presto_gated_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Outputs:
    return (presto_kernels.gated_residual(x, branch, gate),)


def _presto_gated_residual_adaln(x: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> Outputs:
    return presto_kernels.gated_residual_adaln(x, branch, gate, scale, shift, eps=EPS)


OPS = {
    op.name: op
    for op in (
        Op("adaln_modulate", ("x", "scale", "shift"), ("h",), _eager_adaln_modulate, _presto_adaln_modulate),
        Op("gated_residual", ("x", "branch", "gate"), ("x'",), _eager_gated_residual, _presto_gated_residual),
        Op(
            "gated_residual_adaln",
            ("x", "branch", "gate", "scale", "shift"),
            ("x'", "h"),
            _eager_gated_residual_adaln,
            _presto_gated_residual_adaln,
        ),
    )
}
