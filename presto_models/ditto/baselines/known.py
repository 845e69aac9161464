"""Latents that controls decide themselves, as one mask and one set of values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_models.ditto.control import Bound


@dataclass(frozen=True, eq=False)
class Known:
    """``where``: bool ``[N, 1]``.  ``values``: fp32 ``[N, C]`` in the units of x, zero elsewhere."""

    where: Tensor
    values: Tensor

    @classmethod
    def of(cls, bound: Sequence[Bound]) -> Known | None:
        """Of the controls that decide latents; None where there is none.  Where two decide the same latents, which
        :func:`presto_models.ditto.control.bind_all` allows only if they agree, the first is taken."""
        parts = [part for part in (b.known() for b in bound) if part is not None]
        if not parts:
            return None
        mask, values = parts[0]
        where, values = mask.bool()[:, None], values.float()
        for mask, more in parts[1:]:
            values = torch.where(where, values, more.float())
            where = where | mask.bool()[:, None]
        return cls(where, torch.where(where, values, 0))

    @classmethod
    def of_all(cls, bound: Sequence[Bound], method: str) -> Known:
        """As :meth:`of`, for a method that can do nothing else.

        Raises:
            ValueError: a control decides no latents; names it.
        """
        others = [b.name for b in bound if b.known() is None]
        known = cls.of(bound)
        if others or known is None:
            raise ValueError(
                f"controls must decide latents themselves (an outpainting, an inpainting, a loop with a reference) for "
                f"{method}, and {', '.join(others)} does not; freedom takes every control"
            )
        return known

    def put(self, x: Tensor) -> Tensor:
        """x ``[B, N, C]`` with the known part in its place."""
        return torch.where(self.where, self.values, x)
