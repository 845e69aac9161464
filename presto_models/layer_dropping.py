"""The order in which blocks run, and for how many samples each: host data, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Walk:
    """Which blocks run, and for how many samples of the batch.

    ``blocks``: indices, increasing.  ``active``: beside each block, how many samples it runs for, always the first
    ones;
    None: all of them at every block.  ``join``: position in ``blocks`` of the first of the last ``keep_last`` blocks,
    where samples that left meet again; ``len(blocks)`` is the final layer.
    """

    blocks: tuple[int, ...]
    active: tuple[int, ...] | None
    join: int

    def staying(self, position: int, rows: int) -> int:
        """How many of the ``rows`` samples present go on into the block at ``position``; behind the last, all."""
        if self.active is None or position >= len(self.active):
            return rows
        return min(rows, self.active[position])


def uniform_walk(blocks: Sequence[int] | None, num_blocks: int) -> Walk:
    """All samples through ``blocks`` (None: every block)."""
    if blocks is None:
        return Walk(tuple(range(num_blocks)), None, num_blocks)
    blocks = tuple(blocks)
    if not blocks or any(a >= b for a, b in pairwise(blocks)) or blocks[0] < 0 or blocks[-1] >= num_blocks:
        raise ValueError(
            f"blocks must be increasing indices from 0 to {num_blocks - 1}, at least one "
            f"(LayerSchedule.kept gives them), got {blocks}"
        )
    return Walk(blocks, None, len(blocks))


def mixed_walk(budgets: Sequence[int], batch: int, num_blocks: int, keep_last: int) -> Walk:
    """Each sample through the first ``budget - keep_last`` and the last ``keep_last`` blocks.

    The batch comes sorted by falling budget, so that the samples a block runs for are a prefix, and a prefix is a view.
    """
    budgets = tuple(budgets)
    if len(budgets) != batch:
        raise ValueError(f"budgets must have one entry per sample, {batch}, got {len(budgets)}")
    lowest = max(1, keep_last)
    if any(not lowest <= b <= num_blocks for b in budgets):
        raise ValueError(f"budgets must be from {lowest} to num_blocks = {num_blocks}, got {budgets}")
    if any(a < b for a, b in pairwise(budgets)):
        raise ValueError(
            f"budgets must fall (or stay) along the batch, got {budgets}: sort the samples once, "
            "order = sorted(range(B), key=lambda b: -budgets[b])"
        )
    early = [sum(b - keep_last > block for b in budgets) for block in range(num_blocks - keep_last)]
    early = [count for count in early if count]
    blocks = (*range(len(early)), *range(num_blocks - keep_last, num_blocks))
    active = (*early, *[batch] * keep_last)
    return Walk(blocks, None if all(n == batch for n in active) else active, len(early))
