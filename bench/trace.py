"""What PyTorch's profiler saw of one call: spans in a tree, and Chrome trace files, which Perfetto opens.

Everything is read from the profiler's own Chrome trace, whose format is the same for a CPU and for CUDA: an operator or
range has a thread and lies inside another by time; a kernel has a stream and the number (`correlation`) of the call on
the CPU that launched it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench import machine, ranges, results

Event = dict[str, Any]
STEP = "bench/call"
"""The range around what is recorded."""

RANGE, OP, LAUNCH, KERNEL = "range", "op", "launch", "kernel"
CATEGORIES = {
    "user_annotation": RANGE,
    "cpu_op": OP,
    "cuda_runtime": LAUNCH,
    "cuda_driver": LAUNCH,
    "kernel": KERNEL,
    "gpu_memcpy": KERNEL,
    "gpu_memset": KERNEL,
}
"""The profiler's categories → ours.  A copy on the device is a kernel as far as launches and gaps go."""

ON_GPU = (*(category for category, what in CATEGORIES.items() if what == KERNEL), "gpu_user_annotation")


@dataclass(eq=False)
class Span:
    """Something with a beginning and an end, in ms since the recording began.

    Attributes:
        what: RANGE, OP, LAUNCH or KERNEL.
        track: thread or stream.
        parent: what it ran in; of a kernel the call that launched it, None where the profiler does not know.
    """

    name: str
    what: str
    track: str
    start: float
    end: float
    parent: Span | None = None

    @property
    def ms(self) -> float:
        return self.end - self.start

    def within(self) -> Iterable[Span]:
        """What it ran in, from the inside out."""
        around = self.parent
        while around is not None:
            yield around
            around = around.parent


def record(call: Callable[[], object], device: torch.device) -> list[Event]:
    """Runs `call` once under the profiler, in a range STEP; the trace's events by time, their clock from 0."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    machine.synchronize(device)
    with profile(activities=activities) as recorded, ranges.named(STEP):
        call()
        machine.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        return from_zero(load(path))


def load(path: str | Path) -> list[Event]:
    """The events of a Chrome trace file; NaN, which the profiler may write and JSON forbids, becomes null."""
    content = json.loads(Path(path).read_text(), parse_constant=lambda _: None)
    return list(content["traceEvents"])


def from_zero(events: Iterable[Event]) -> list[Event]:
    """Sorted by time, outer before inner, the first at 0; whole nanoseconds, so that what is nested stays nested.

    Only what has a length, and arrows from launch to kernel, are kept; not the profiler's spans about itself.
    """
    kept = [e for e in events if e["ph"] in ("X", "s", "t", "f") and e.get("pid") not in ("Spans", "Traces")]
    begun = min((e["ts"] for e in kept if e["ph"] == "X"), default=0.0)
    moved = []
    for event in kept:
        start = round(1000 * (event["ts"] - begun)) / 1000
        moved.append(event | {"ts": start} | ({"dur": round(event["dur"], 3)} if "dur" in event else {}))
    return sorted(moved, key=lambda e: (e["ts"], -e.get("dur", 0.0)))


def spans(events: Iterable[Event]) -> list[Span]:
    """The tree of what `record` returned, in order of time."""
    found: list[Span] = []
    open_on: dict[str, list[Span]] = {}
    launches: dict[int, Span] = {}
    kernels: list[tuple[Span, int]] = []
    for event in events:
        what = CATEGORIES.get(event.get("cat", ""))
        if what is None or event["ph"] != "X":
            continue
        start = event["ts"] / 1e3
        place = "stream" if what == KERNEL else "thread"
        span = Span(event["name"], what, f"{place} {event['tid']}", start, start + event["dur"] / 1e3)
        found.append(span)
        correlation = event.get("args", {}).get("correlation", 0)
        if what == KERNEL:
            kernels.append((span, correlation))
            continue
        around = open_on.setdefault(span.track, [])
        while around and around[-1].end <= span.start:
            around.pop()
        span.parent = around[-1] if around else None
        around.append(span)
        if what == LAUNCH:
            launches[correlation] = span
    for kernel, correlation in kernels:  # a kernel never begins before its launch, but its event may come first
        kernel.parent = launches.get(correlation)
    return found


def write(path: str | Path, processes: Mapping[str, Sequence[Event]]) -> None:
    """A trace file with a process for every name; all begin at 0, so that their lengths compare by eye.

    On CUDA the profiler's own processes, host and GPU, stay apart: "presto" and "presto, GPU 0".
    """
    names: list[Event] = []
    timed: list[Event] = []
    numbers: dict[tuple[str, object], int] = {}
    for process, events in processes.items():
        on_gpu = {event["pid"] for event in events if event.get("cat") in ON_GPU}
        for event in events:
            pid, tid = event["pid"], event["tid"]
            number = numbers.setdefault((process, pid), len(numbers) + 1)
            # Arrows from launch to kernel are told apart by number, which each recording counts anew.
            arrow = {"id": f"{process} {event['id']}"} if "id" in event else {}
            timed.append(event | {"pid": number} | arrow)
            shown = (f"{process}, GPU {pid}", f"stream {tid}") if pid in on_gpu else (process, f"thread {tid}")
            for kind, name in zip(("process_name", "thread_name"), shown, strict=True):
                named = {"ph": "M", "name": kind, "pid": number, "tid": tid, "ts": 0.0, "args": {"name": name}}
                if named not in names:
                    names.append(named)
    timed.sort(key=lambda event: (event["ts"], -event.get("dur", 0.0)))
    results.write_text(path, json.dumps({"displayTimeUnit": "ms", "traceEvents": names + timed}, allow_nan=False))
