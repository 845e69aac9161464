"""``accelerate_report``: what in a model runs the fused ops, what does not, and why."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from dataclasses import dataclass

from torch import nn

from presto_kernels.integrations.registry import SWAPS
from presto_kernels.integrations.session import Session
from presto_kernels.integrations.swapping import Accelerated, find

WIDTH = 100
MASKS = {
    "faithful": "as the original treats them (Stable Audio 3: padded values are zero, padded keys stay in the softmax)",
    "exact": "padded keys are not seen, whatever the original does",
}


@dataclass(frozen=True)
class Row:
    """Modules of one class that share a fate.

    name: of the class.  count: how many.  where: the path of the first, and of the last.
    what: what is fused in them, or why they were left alone.
    """

    name: str
    count: int
    where: str
    what: str


@dataclass(frozen=True)
class Report:
    """What :func:`accelerate_report` found; ``print`` it.

    swapped, left: modules of known classes, accelerated and not.
    passed_on: (class, why) -> calls since that ran as the original.
    share: of the model's parameters, those inside accelerated modules.
    backend, masks: the settings, or None where nothing is accelerated.
    """

    swapped: tuple[Row, ...]
    left: tuple[Row, ...]
    passed_on: dict[tuple[str, str], int]
    share: float
    backend: str | None
    masks: str | None

    def __str__(self) -> str:
        if not self.swapped and not self.left:
            return "nothing that accelerate knows is in this model (docs/accelerate.md has the list)"
        lines = []
        if self.swapped:
            lines += [f"accelerated: {self.share:.0%} of the parameters are inside, backend {self.backend}"]
            lines += [line for row in self.swapped for line in _lines(row)]
            lines += textwrap.wrap(f"masks {self.masks}: {MASKS[self.masks or 'faithful']}", WIDTH)
        if self.left:
            lines += ["left as they are:", *(line for row in self.left for line in _lines(row))]
        if self.passed_on:
            lines += ["calls that ran as the original:"]
            lines += [f"  {count:5} {name}: {why}" for (name, why), count in self.passed_on.items()]
        return "\n".join(lines)


def accelerate_report(model: nn.Module) -> Report:
    """What of a model :func:`accelerate` swapped, what it knows but left, and the calls that still ran as before.

    Of a model that was not accelerated it says what would be left, and why.

    Raises:
        TypeError: model is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate_report: model must be a torch.nn.Module, got {type(model).__name__}")
    runs = {swap.fused: swap.runs for swap in SWAPS.values()}
    swapped, left = defaultdict(list), defaultdict(list)
    sessions: dict[int, Session] = {}
    inside: dict[int, int] = {}
    for path, module in model.named_modules():
        if isinstance(module, Accelerated):
            swapped[type(module).__name__, runs.get(module._fused, "kept over a prompt")].append(path)
            sessions[id(module._presto)] = module._presto
            inside |= {id(p): p.numel() for p in module.parameters()}
    for found in find(model):
        left[type(found.module).__name__, found.why_not or "accelerate was not called on it"].append(found.path)
    passed_on: Counter[tuple[str, str]] = sum((s.passed_on for s in sessions.values()), Counter())
    settings = next((s.settings for s in sessions.values()), None)
    total = sum(p.numel() for p in model.parameters())
    return Report(
        _rows(swapped), _rows(left), dict(passed_on), sum(inside.values()) / max(total, 1),
        None if settings is None else settings.backend, None if settings is None else settings.masks,
    )  # fmt: skip


def _rows(found: dict[tuple[str, str], list[str]]) -> tuple[Row, ...]:
    return tuple(Row(name, len(paths), _span(paths), what) for (name, what), paths in found.items())


def _span(paths: list[str]) -> str:
    first, last = paths[0] or "the model itself", paths[-1]
    return first if len(paths) == 1 else f"{first} ... {last}"


def _lines(row: Row) -> list[str]:
    return [
        *textwrap.wrap(f"{row.count} {row.name}: {row.what}", WIDTH, initial_indent="  ", subsequent_indent="    "),
        *textwrap.wrap(row.where, WIDTH, initial_indent="      ", subsequent_indent="      ", break_long_words=False),
    ]
