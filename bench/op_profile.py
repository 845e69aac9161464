"""Where the time of one model call goes, by kind of op, for any model with the DiT's module names.

The unit of work is an operator that Python called, with all it calls inside; on CUDA a kernel. It counts for the kind
that its innermost room of KINDS stands for, attention apart. What nobody works in between is a gap, and counts for the
kind that ends it: Python between operators, or an idle GPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from bench import ranges, trace
from bench.trace import KERNEL, OP, RANGE, STEP, Span

KINDS = {
    "proj_in": "proj in, out",
    "proj_out": "proj in, out",
    "self_attention": "qk norm, rotary",
    "self_attention/qkv": "qkv",
    "self_attention/out": "out, cross q, cross out",
    "cross_attention": "qk norm, rotary",
    "cross_attention/q": "out, cross q, cross out",
    "cross_attention/out": "out, cross q, cross out",
    "mlp": "swiglu",
    "mlp/up": "mlp up",
    "mlp/down": "mlp down",
}
"""The last parts of a room's name → kind of what runs in it and in no room of KINDS inside it; the rest is `seams`."""

ATTENTION_OPERATORS = ("scaled_dot_product", "presto_kernels::attention", "flash_attn")
ATTENTION = {"self_attention": "self-attention", "cross_attention": "cross-attention"}
REST = "seams"


@dataclass(frozen=True)
class Work:
    """An operator that Python called, or a kernel: its span, its kind, and the operator's name."""

    span: Span
    kind: str
    op: str


@dataclass
class Part:
    """What a kind cost in one call: own ms, launches (operator calls; on CUDA kernels), ms of the gaps it ended."""

    ms: float = 0.0
    launches: int = 0
    gap_ms: float = 0.0
    ops: dict[str, Part] = field(default_factory=dict)

    def add(self, op: str, ms: float) -> None:
        for part in (self, self.ops.setdefault(op, Part())):
            part.ms += ms
            part.launches += 1


@dataclass(frozen=True)
class Profile:
    """One call: its kinds, and the recording they came from."""

    kinds: dict[str, Part]
    work: list[Work]
    spans: list[Span]


@contextmanager
def marked(model: nn.Module, *, nvtx: bool = False) -> Iterator[None]:
    """Names the rooms of a model with the DiT's module names in whatever is recorded within the block."""
    with ranges.rooms({type(model).__module__: model}, nvtx=nvtx):
        yield


def profile(call: Callable[[], object], device: torch.device) -> Profile:
    """Runs `call` once under the profiler; its model must be `marked`."""
    spans = trace.spans(trace.record(call, device))
    done = work_of(spans, KERNEL if device.type == "cuda" else OP)
    return Profile(by_kind(done, None if device.type == "cuda" else step_of(spans)), done, spans)


def profile_replay(replay: Callable[[], object], eager: Sequence[Work], device: torch.device) -> Profile:
    """One replay of a CUDA graph of the call whose eager `work` is given.

    No range is entered when a graph is replayed.  Where the same kernels run in the same order as eagerly they are of
    the same kinds; where not, all is of the kind UNMATCHED, by kernel.
    """
    spans = trace.spans(trace.record(replay, device))
    done = matched(work_of(spans, KERNEL), eager)
    return Profile(by_kind(done), done, spans)


UNMATCHED = "kernels, not matched"


def matched(replayed: Sequence[Work], eager: Sequence[Work]) -> list[Work]:
    """The replayed kernels, each of the kind and operator of the eager kernel in its place, if all names agree."""
    names = [[work.span.name for work in each] for each in (replayed, eager)]
    if names[0] == names[1]:
        return [Work(ours.span, its.kind, its.op) for ours, its in zip(replayed, eager, strict=True)]
    return [Work(work.span, UNMATCHED, work.span.name) for work in replayed]


def work_of(spans: Sequence[Span], what: str) -> list[Work]:
    """All units of work: kernels (`what` KERNEL) or operators that no other operator called (OP), by start."""
    units = (s for s in spans if s.what == what and (what == KERNEL or all(a.what != OP for a in s.within())))
    return [_work(span) for span in sorted(units, key=lambda span: span.start)]


def by_kind(work: Sequence[Work], step: Span | None = None) -> dict[str, Part]:
    """Sums by kind.  Idle is where no unit of work runs, on whatever stream, from the first to the last.

    `step`: count also what is before the first and behind the last (for the last's kind) inside this span.
    """
    kinds: dict[str, Part] = defaultdict(Part)
    busy_until = step.start if step is not None else work[0].span.start if work else 0.0
    for each in work:
        kinds[each.kind].add(each.op, each.span.ms)
        kinds[each.kind].gap_ms += max(0.0, each.span.start - busy_until)
        busy_until = max(busy_until, each.span.end)
    if step is not None and work:
        kinds[work[-1].kind].gap_ms += max(0.0, step.end - busy_until)
    return dict(kinds)


def step_of(spans: Sequence[Span]) -> Span:
    """The range around all that was recorded."""
    return next(span for span in spans if span.name == STEP)


def kind_of(span: Span) -> str:
    """The kind of an operator or a kernel."""
    in_attention = False
    for around in (span, *span.within()):
        if around.what == RANGE:
            room = _room(around.name)
            if room is not None:
                return ATTENTION[room] if in_attention and room in ATTENTION else KINDS[room]
        elif around.what == OP:
            in_attention = in_attention or any(name in around.name for name in ATTENTION_OPERATORS)
    return REST


def _work(span: Span) -> Work:
    operators = [each.name for each in (span, *span.within()) if each.what == OP]
    return Work(span, kind_of(span), operators[-1] if operators else span.name)


def _room(name: str) -> str | None:
    """The last parts of a range's name that are in KINDS, if they are."""
    parts = name.split("/")
    return next((end for end in ("/".join(parts[-2:]), parts[-1]) if end in KINDS), None)
