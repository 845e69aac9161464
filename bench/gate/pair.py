"""Two workers, one a commit, timed in turn: what both meet within a moment is the same machine."""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.gate.checkout import PACKAGES, ROOT
from bench.gate.rule import Launches

BASE, NEW = "base", "new"
TURN_MS = 2.0
"""What disturbs a machine here lasts 20 ms and longer (autocorrelation of 2 ms means: 0.8 to the next, 0.5 ten on), so
turns are far shorter: with 8 ms the launches of swiglu differed by 3 to 4 %, with 2 ms by 1.7.
"""
FEWEST_TURNS = 15  # of each side, however long a call takes

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""glibc gives large results back to the system and page-faults for them anew, or does not, by turns: half of an op's
time, at random.  With these it keeps them, on both sides, and in huge pages, which leaves less to luck.
"""


class WorkerError(RuntimeError):
    """What the worker of this side replied instead of a time, or said last before it died."""

    def __init__(self, side: str, message: str) -> None:
        super().__init__(message)
        self.side = side


class Process:
    """A worker with the packages of one checkout."""

    def __init__(
        self, side: str, packages: Path, device: torch.device, threads: int, slow: Mapping[str, float]
    ) -> None:
        self.side = side
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
            raise WorkerError(self.side, self._last_words()) from None
        reply = self._reply()
        if "error" in reply:
            raise WorkerError(self.side, reply["error"])
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
            raise WorkerError(self.side, self._last_words())
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
        seconds: of each row in a launch, both sides together; at least fifteen turns each.
        threads: of each worker, on a CPU.
        slow: planted slowdowns of NEW, key to share.
        until: by the clock, when no further launch begins.
        samples: key to, for each launch, {BASE: ms of the fastest call, NEW: the same, "paired": median over turns of
            log(new / base), "calls": timed on each side}.
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
                found.setdefault(row, []).append(readings(times))
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
                processes[side] = Process(side, self.folders[side], self.device, self.threads, slow)
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
        fastest, count = dict.fromkeys(processes, math.inf), 0
        paired: list[float] = []
        if row not in self.refused:
            calls = max(1, round(TURN_MS / max(once, 1e-3)))
            started = time.perf_counter()
            while len(paired) < FEWEST_TURNS or time.perf_counter() - started < self.seconds:
                turn = list(processes)
                shuffle.shuffle(turn)
                mean = {}
                for side in turn:
                    times = processes[side].ask("time", key=row, repeats=calls)
                    fastest[side], mean[side] = min(fastest[side], *times), sum(times) / calls
                paired.append(math.log(mean[NEW] / mean[BASE]))
                count += calls
        for process in processes.values():
            process.ask("drop", key=row)
        if row in self.refused:
            return None
        return fastest | {"paired": statistics.median(paired), "calls": count}


def readings(launch: Mapping[str, float]) -> dict[str, float]:
    """A launch's log(new / base), by reading."""
    return {"fastest": math.log(launch[NEW] / launch[BASE]), "paired": launch["paired"]}
