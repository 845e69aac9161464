"""Two workers, one a commit, timed in turn: what both meet within a moment is the same machine."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.gate.checkout import PACKAGES, ROOT
from bench.gate.rule import Launches

BASE, NEW = "base", "new"
TURN_MS = 8.0  # so short that both sides meet the same machine, so long that a wake-up from waiting is little of it
FAST = 0.05
"""The quantile of a launch's calls that stands for them.

Work that is always the same takes its own time plus what others take away, so the fast calls are nearest to the truth.
With five neighbours on two cores the medians of identical launches differed by 2 to 12 %, this quantile by 1 to 3 %.
"""

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc gives large results back to the system and page-faults for them anew, or does not, by turns: half of an op's
time, at random.  With these it keeps them, on both sides.
"""


class WorkerError(RuntimeError):
    """What a worker replied instead of a time."""


class Process:
    """A worker with the packages of one checkout."""

    def __init__(self, packages: Path, device: torch.device, threads: int, slow: Mapping[str, float]) -> None:
        # Its path: a folder with nothing but the packages under test, then this checkout for the bench.
        self._links = tempfile.TemporaryDirectory(prefix="bench-gate-")
        for name in PACKAGES:
            (Path(self._links.name) / name).symlink_to(packages / name)
        path = os.pathsep.join([self._links.name, str(ROOT)])
        settings = {"device": device.type, "threads": threads, "slow": dict(slow)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bench.gate.worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(errors := tempfile.TemporaryFile(mode="w+")),  # noqa: SIM115
            text=True,
            bufsize=1,
            env=os.environ | KEEP_MEMORY | {"PYTHONPATH": path},
        )
        self._errors = errors

    def ready(self) -> None:
        """Waits until it has started."""
        self._reply()

    def ask(self, do: str, **arguments: Any) -> Any:
        """Its reply's milliseconds.

        Raises:
            WorkerError: what it replied instead, or that it died and what it said last.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        except BrokenPipeError:
            raise WorkerError(self._last_words()) from None
        reply = self._reply()
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply["ms"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            stream.close()
        self._links.cleanup()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or ["it said nothing"]
        return f"the process ended with status {self._process.returncode}: {lines[-1]}"


@dataclass
class Pair:
    """Times rows of two checkouts against each other.

    Attributes:
        folders: BASE and NEW to the folder with their packages.
        seconds: of each row in a launch, both sides together; at least three turns each.
        threads: of each worker, on a CPU.
        slow: planted slowdowns of NEW, key to share.
        until: by the clock, when no further launch begins.
        samples: key to, for each launch, {BASE: milliseconds, NEW: milliseconds, "calls": timed on each side}.
        refused: key to why a row was not timed, by side.
    """

    folders: Mapping[str, Path]
    device: torch.device
    seconds: float
    threads: int = 1
    slow: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    until: float = math.inf
    on_progress: Callable[[float], object] = lambda share: None
    samples: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)

    def measure(self, rows: Sequence[str], launches: int) -> dict[str, Launches]:
        """That many launches of these rows; those that either side refuses are missing from what is returned."""
        found: dict[str, Launches] = {}
        for launch in range(launches):
            if time.perf_counter() > self.until:
                break
            for row, times in self._launch(rows, launch / launches, 1 / launches).items():
                self.samples.setdefault(row, []).append(times)
                found.setdefault(row, []).append(math.log(times[NEW] / times[BASE]))
        return found

    def _launch(self, rows: Sequence[str], done: float, share: float) -> dict[str, dict[str, float]]:
        self.seed += 1
        shuffle = random.Random(self.seed)
        order = [row for row in rows if row not in self.refused]
        shuffle.shuffle(order)
        sides = list(self.folders)
        shuffle.shuffle(sides)  # which of them gets its memory first is luck too
        processes: dict[str, Process] = {}
        found = {}
        try:
            for side in sides:
                slow = self.slow if side == NEW else {}
                processes[side] = Process(self.folders[side], self.device, self.threads, slow)
            for side in sides:
                processes[side].ready()
            for index, row in enumerate(order):
                times = self._row(processes, row, shuffle)
                if times is not None:
                    found[row] = times
                self.on_progress(done + share * (index + 1) / len(order))
        finally:
            for process in processes.values():
                process.close()
        return found

    def _row(self, processes: Mapping[str, Process], row: str, shuffle: random.Random) -> dict[str, float] | None:
        """Milliseconds of a call by side; None where a side cannot run it."""
        once, first = 0.0, row not in self.samples
        for side, process in processes.items():
            try:
                once = max(once, process.ask("prepare", key=row, seed=self.seed, check=first and side == NEW))
            except WorkerError as error:
                self.refused.setdefault(row, {})[side] = str(error)
        times: dict[str, list[float]] = {side: [] for side in processes}
        if row not in self.refused:
            calls = max(1, math.ceil(TURN_MS / max(once, 1e-3)))
            started, turns = time.perf_counter(), 0
            while turns < 3 or time.perf_counter() - started < self.seconds:
                turn = list(processes)
                shuffle.shuffle(turn)
                for side in turn:
                    times[side] += processes[side].ask("time", key=row, repeats=calls)
                turns += 1
        for process in processes.values():
            process.ask("drop", key=row)
        if row in self.refused:
            return None
        fast = {side: float(np.quantile(each, FAST)) for side, each in times.items()}
        return fast | {"calls": len(times[NEW])}
