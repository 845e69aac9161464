"""A GPU's sensors through NVML (nvidia-ml-py, `pynvml`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.telemetry import Reading, Source, spread

PERIOD = 0.05
THROTTLES = {
    "SW power cap": "SwPowerCap",
    "HW slowdown": "HwSlowdown",
    "sync boost": "SyncBoost",
    "SW thermal slowdown": "SwThermalSlowdown",
    "HW thermal slowdown": "HwThermalSlowdown",
    "HW power brake": "HwPowerBrakeSlowdown",
}
"""What holds the clocks back; the other reasons NVML knows are settings (`FIXED`) or that there is nothing to do."""
FIXED = {"application clocks": "ApplicationsClocksSetting", "display clocks": "DisplayClockSetting"}


class Nothing:
    """No sensors, and why."""

    period = PERIOD

    def __init__(self, reason: str) -> None:
        self.name: str | None = None
        self.reason = reason

    def read(self) -> Reading:
        return {}

    def energy(self) -> None:
        return None

    def fields(self, readings: Sequence[Reading]) -> dict[str, Any]:
        return {"reason": self.reason}

    def marks(self, readings: Sequence[Reading]) -> list[str]:
        return []


def open_source(device: torch.device, nvml: Any = None) -> Source:
    """NVML's view of a torch device, or :class:`Nothing` with the reason.  `nvml`: the module, for tests."""
    if nvml is None:
        try:
            import pynvml as nvml
        except ImportError:
            return Nothing("nvidia-ml-py is not installed: pip install 'presto-kernels[bench]'")
    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    try:
        nvml.nvmlInit()
        return NVML(nvml, _handle(nvml, uuid))
    except nvml.NVMLError as error:
        return Nothing(f"NVML: {error}")


def _handle(nvml: Any, uuid: str) -> Any:
    """By UUID, since CUDA_VISIBLE_DEVICES gives torch's devices other numbers than NVML's.

    A MIG slice has no power or clocks of its own: its GPU stands for it.
    """
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}"))


class NVML:
    """One GPU.  A query that this GPU or driver does not know gives None and is listed in ``unsupported``."""

    period = PERIOD

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.name: str | None = "NVML"
        self.nvml, self.handle = nvml, handle
        self.unsupported: dict[str, str] = {}
        self._reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons
        try:
            self._reasons(handle)
        except nvml.NVMLError:  # a driver before 535 knows it by its old name
            self._reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons

    def read(self) -> Reading:
        nvml, ask = self.nvml, self._ask
        milliwatts = ask("power", nvml.nvmlDeviceGetPowerUsage)
        return {
            "power_w": None if milliwatts is None else milliwatts / 1e3,
            "sm_mhz": ask("SM clock", nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            "memory_mhz": ask("memory clock", nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            "temperature_c": ask("temperature", nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            "reasons": ask("clock reasons", self._reasons),
            "others": self._others(),
        }

    def energy(self) -> float | None:
        millijoules = self._ask("energy counter", self.nvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if millijoules is None else millijoules / 1e3

    def fields(self, readings: Sequence[Reading]) -> dict[str, Any]:
        nvml, ask = self.nvml, self._ask
        power = [reading["power_w"] for reading in readings if reading["power_w"] is not None]
        limit = ask("power limit", nvml.nvmlDeviceGetEnforcedPowerLimit)
        top = {
            "sm_mhz": ask("highest SM clock", nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
            "memory_mhz": ask("highest memory clock", nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_MEM),
        }
        clocks = {name: spread([reading[name] for reading in readings]) for name in top}
        return {
            "power_w": {
                "mean": round(sum(power) / len(power), 1) if power else None,
                "max": max(power, default=None),
                "limit": None if limit is None else limit / 1e3,
            },
            **{name: {**(seen or {}), "highest": top[name]} for name, seen in clocks.items()},
            "temperature_c": spread([reading["temperature_c"] for reading in readings]),
            "throttled": self._shares(readings, THROTTLES),
            "fixed_clocks": self._shares(readings, FIXED),
            "other_processes": _most(readings, "others"),
            "mig": self._mig(),
            "unsupported": dict(self.unsupported),
        }

    def marks(self, readings: Sequence[Reading]) -> list[str]:
        shares = self._shares(readings, THROTTLES) or {}
        found = [f"throttled: {name} in {_percent(share)} of the readings" for name, share in shares.items()]
        others = _most(readings, "others")
        if others:
            found.append(f"shared: {others} other process{'es' if others > 1 else ''} on this GPU")
        if self._mig():
            found.append("MIG: a slice was timed; power, energy and clocks are the whole GPU's")
        return found

    def _ask(self, what: str, query: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return query(self.handle, *arguments)
        except self.nvml.NVMLError as error:
            self.unsupported[what] = str(error)
            return None

    def _others(self) -> int | None:
        """Compute processes beside this one, which is one of those listed, in a container by a number unknown to it."""
        processes = self._ask("processes", self.nvml.nvmlDeviceGetComputeRunningProcesses)
        if processes is None:
            return None
        return max(0, len({process.pid for process in processes}) - 1)

    def _mig(self) -> bool | None:
        modes = self._ask("MIG mode", self.nvml.nvmlDeviceGetMigMode)
        return None if modes is None else bool(modes[0])

    def _shares(self, readings: Sequence[Reading], names: dict[str, str]) -> dict[str, float] | None:
        """In which share of the readings each reason was given; None where NVML gives none."""
        masks = [reading["reasons"] for reading in readings if reading["reasons"] is not None]
        if not masks:
            return None
        bits = {name: getattr(self.nvml, f"nvmlClocksThrottleReason{constant}") for name, constant in names.items()}
        shares = {name: sum(bool(mask & bit) for mask in masks) / len(masks) for name, bit in bits.items()}
        return {name: round(share, 4) for name, share in shares.items() if share}


def _most(readings: Sequence[Reading], name: str) -> int | None:
    return max((reading[name] for reading in readings if reading[name] is not None), default=None)


def _percent(share: float) -> str:
    return "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"
