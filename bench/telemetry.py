"""What the machine did while something was timed: energy, power, clocks, temperature, throttling, other users.

    watched = telemetry.watch(device)      # before the work: a CPU's load is read here
    with watched:                          # as often as there is something to time; the windows add up
        ...
    watched.note(report.meta)              # meta["telemetry"] and meta["marks"]

A thread reads the sensors while the window is open. What cannot be read is None with the reason, never a guess.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Reading = dict[str, Any]


class Source(Protocol):
    """The sensors of one device.

    Attributes:
        name: where the figures come from, None where nothing can be read.
        period: seconds between readings.
    """

    name: str | None
    period: float

    def read(self) -> Reading:
        """What there is at this moment; None for a figure that cannot be read.  ``power_w`` is integrated."""

    def energy(self) -> float | None:
        """A counter of joules that only rises, or None."""

    def fields(self, readings: Sequence[Reading]) -> dict[str, Any]:
        """The readings summed up, ready for JSON.  The first of each window has ``first`` set."""

    def marks(self, readings: Sequence[Reading]) -> list[str]:
        """What makes the timings less than this device's own, in short sentences."""


def watch(device: torch.device, *, clock: Callable[[], float] = time.perf_counter) -> Watch:
    """The watch of a device: NVML for a GPU, what Linux tells of a CPU."""
    from bench import telemetry_cpu, telemetry_gpu

    source: Source = telemetry_gpu.open_source(device) if device.type == "cuda" else telemetry_cpu.Linux()
    return Watch(source, clock=clock)


class Watch:
    """Readings of a source over one or more windows (``with watched:``).

    Attributes:
        seconds: how long the windows were open, in all.
        energy_j: joules in them: the difference of the device's counter, else power integrated over time, else None.
    """

    def __init__(self, source: Source, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.source, self.clock = source, clock
        self.readings: list[Reading] = []
        self.seconds = 0.0
        self.energy_j: float | None = None
        self.energy_from: str | None = None
        self._window: list[tuple[float, Reading]] = []

    def __enter__(self) -> Watch:
        self._window, self._stop = [], threading.Event()
        self._started, self._counter = self.clock(), self.source.energy()
        self.sample()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="telemetry", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()
        counter = self.source.energy()
        self.seconds += self.clock() - self._started
        self.readings += [{**reading, "first": index == 0} for index, (_, reading) in enumerate(self._window)]
        if self._counter is not None and counter is not None:
            self._spent(counter - self._counter, "counter")
        else:
            self._spent(_integral(self._window), "power over time")

    def sample(self) -> None:
        """One reading now."""
        if self.source.name is not None:
            self._window.append((self.clock(), self.source.read()))

    def fields(self) -> dict[str, Any]:
        """Everything, ready for JSON (docs/bench/latency.md says what each is)."""
        return {
            "source": self.source.name,
            "seconds": round(self.seconds, 3),
            "readings": len(self.readings),
            "energy_j": None if self.energy_j is None else float(f"{self.energy_j:.5g}"),
            "energy_from": self.energy_from,
            **self.source.fields(self.readings),
        }

    def marks(self) -> list[str]:
        """What a reader of the timings must know: throttled, shared, loaded; empty where nothing was seen."""
        return self.source.marks(self.readings)

    def note(self, meta: dict[str, Any]) -> None:
        """Both into the `meta` of a report."""
        meta["telemetry"], meta["marks"] = self.fields(), self.marks()

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(self.source.period):
            self.sample()

    def _spent(self, joules: float | None, how: str) -> None:
        if joules is not None:
            self.energy_j, self.energy_from = (self.energy_j or 0.0) + joules, how


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Lowest, median and highest of what could be read."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"min": min(known), "median": statistics.median(known), "max": max(known)}


def _integral(window: Sequence[tuple[float, Reading]]) -> float | None:
    """Joules by the trapezoid rule; None without two readings of the power."""
    known = [(when, reading["power_w"]) for when, reading in window if reading.get("power_w") is not None]
    if len(known) < 2:
        return None
    return sum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in itertools.pairwise(known))
