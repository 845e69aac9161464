"""What Linux tells of a CPU: clocks, energy (RAPL) where it may be read, and how busy others kept it."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.show import BUSY_LOAD
from bench.telemetry import Reading, spread

PERIOD = 0.5  # a reading takes a millisecond of a core that is being timed
OTHERS, STEAL = 0.25, 0.01  # cores that others used meanwhile, and share that the hypervisor kept, worth a mark

SHORTEST = 0.5  # seconds in which the ticks of 10 ms tell enough


class Linux:
    """This machine, from /proc and /sys below `root` (for tests).  The load is read when it is made."""

    period = PERIOD

    def __init__(self, root: Path = Path("/")) -> None:
        self.name: str | None = "Linux"
        self.root = root
        self.load = _number(root / "proc/loadavg")
        zones = sorted((root / "sys/class/powercap").glob("intel-rapl:?"))  # AMD's are called so too
        self._zones = [zone for zone in zones if _text(zone / "name").startswith("package")]  # "psys" holds them again
        self._last: list[int] | None = None
        self._joules = 0.0
        self._no_energy: str | None = None

    def read(self) -> Reading:
        self.energy()  # often enough that no counter starts again twice
        return {"power_w": None, "cpu_mhz": self._clock(), "ticks": self._ticks(), "own_s": sum(os.times()[:4])}

    def energy(self) -> float | None:
        """Joules of all packages since the first call; their counters start again at 0 every so often."""
        if not self._zones:
            self._no_energy = "no RAPL counters in /sys/class/powercap"
            return None
        try:
            now = [int((zone / "energy_uj").read_text()) for zone in self._zones]
            tops = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
        except OSError as error:
            self._no_energy = f"RAPL counters cannot be read: {error.strerror}"
            return None
        before = self._last or now
        self._last = now
        self._joules += sum((b - a) % (top + 1) for a, b, top in zip(before, now, tops, strict=True)) / 1e6
        return self._joules

    def fields(self, readings: Sequence[Reading]) -> dict[str, Any]:
        return {
            "no_energy": self._no_energy,
            "cpu_mhz": spread([reading["cpu_mhz"] for reading in readings]),
            "load_at_start": self.load,
            **_used(readings),
        }

    def marks(self, readings: Sequence[Reading]) -> list[str]:
        found, used = [], _used(readings)
        others, steal = used["cores_of_others"], used["stolen"]
        if self.load is not None and self.load > BUSY_LOAD:
            found.append(f"load {self.load:.1f}: something else runs here")
        if others is not None and others > OTHERS:
            found.append(f"shared: others used {others:.1f} of {os.cpu_count()} cores meanwhile")
        if steal is not None and steal > STEAL:
            found.append(f"shared: the hypervisor gave {100 * steal:.0f} % of the time to others")
        return found

    def _clock(self) -> float | None:
        try:
            lines = (self.root / "proc/cpuinfo").read_text().splitlines()
        except OSError:
            return None
        known = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
        return round(statistics.median(known)) if known else None

    def _ticks(self) -> list[int] | None:
        """user, nice, system, idle, iowait, irq, softirq, steal: hundredths of a second of all cores since boot."""
        try:
            first = (self.root / "proc/stat").read_text().splitlines()[0]
        except (OSError, IndexError):
            return None
        return [int(word) for word in first.split()[1:9]]


def _used(readings: Sequence[Reading]) -> dict[str, float | None]:
    """Cores that other processes kept busy, and the share of the time that the hypervisor kept, in all windows."""
    busy = own = total = steal = 0.0
    for before, after in itertools.pairwise(readings):
        if before["ticks"] is None or after["ticks"] is None or after["first"]:
            continue
        user, nice, system, idle, wait, irq, soft, stolen = (
            b - a for a, b in zip(before["ticks"], after["ticks"], strict=True)
        )
        busy += user + nice + system + irq + soft
        total += user + nice + system + irq + soft + idle + wait + stolen
        steal += stolen
        own += after["own_s"] - before["own_s"]
    per_second = os.sysconf("SC_CLK_TCK")
    seconds = total / per_second / (os.cpu_count() or 1)
    if seconds < SHORTEST:
        return {"cores_of_others": None, "stolen": None}
    others = max(0.0, busy / per_second - own) / seconds
    return {"cores_of_others": round(others, 2), "stolen": round(steal / total, 4)}


def _number(path: Path) -> float | None:
    try:
        return float(_text(path).split()[0])
    except (IndexError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
