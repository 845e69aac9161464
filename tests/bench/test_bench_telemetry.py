"""What a GPU did meanwhile, by a stand-in for NVML and a clock that moves by hand; and what Linux tells of a CPU."""

import json
import os
import sys
import time
import types

import pytest
import torch

from bench import machine, show, telemetry, telemetry_cpu, telemetry_gpu

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
POWER_CAP, IDLE, THERMAL = 4, 1, 32


class NVMLError(Exception):
    pass


class FakeNVML:
    """A GPU that draws 100 W and 10 W more with every reading; queries in `broken` are not supported."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlClocksThrottleReasonSwPowerCap, nvmlClocksThrottleReasonSwThermalSlowdown = POWER_CAP, THERMAL
    nvmlClocksThrottleReasonHwSlowdown, nvmlClocksThrottleReasonHwThermalSlowdown = 8, 64
    nvmlClocksThrottleReasonSyncBoost, nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 16, 128
    nvmlClocksThrottleReasonApplicationsClocksSetting, nvmlClocksThrottleReasonDisplayClockSetting = 2, 256

    def __init__(self, *, broken=(), reasons=(0,), pids=(), mig=0, handles=("GPU-u1",)):
        self.broken, self.reasons, self.pids, self.mig, self.handles = broken, list(reasons), list(pids), mig, handles
        self.watts, self.millijoules = 90, 5_000

    def nvmlInit(self):
        self.ask("init")

    def ask(self, what):
        if what in self.broken:
            raise NVMLError("Not Supported")

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in self.handles:
            raise NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle):
        return f"parent of {handle}"

    def nvmlDeviceGetPowerUsage(self, handle):
        self.ask("power")
        self.watts += 10
        return self.watts * 1000

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return 700_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.ask("energy")
        self.millijoules += 2_000
        return self.millijoules

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return 1500 if kind == self.NVML_CLOCK_SM else 2600

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):
        return 1980 if kind == self.NVML_CLOCK_SM else 2619

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return 61

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        self.ask("event reasons")
        return self.nvmlDeviceGetCurrentClocksThrottleReasons(handle)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        self.ask("reasons")
        return self.reasons.pop(0) if len(self.reasons) > 1 else self.reasons[0]

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        self.ask("processes")
        return [types.SimpleNamespace(pid=pid) for pid in self.pids]

    def nvmlDeviceGetMigMode(self, handle):
        self.ask("mig")
        return [self.mig, self.mig]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="u1"))
    monkeypatch.setattr(telemetry_gpu.NVML, "period", 1000.0)  # no readings but those asked for


def watched(nvml, readings=3):
    clock = Clock()
    watch = telemetry.Watch(telemetry_gpu.open_source(CUDA, nvml), clock=clock)
    with watch:
        for _ in range(readings):
            clock.now += 1.0
            watch.sample()
        clock.now += 1.0
    json.dumps(watch.fields(), allow_nan=False)
    return watch


def test_energy_is_the_counters_difference():
    watch = watched(FakeNVML())
    fields = watch.fields()
    assert (fields["energy_j"], fields["energy_from"]) == (2.0, "counter")
    assert (fields["seconds"], fields["readings"], fields["source"]) == (4.0, 5, "NVML")
    assert fields["power_w"] == {"mean": 120.0, "max": 140.0, "limit": 700.0}
    assert fields["sm_mhz"] == {"min": 1500, "median": 1500, "max": 1500, "highest": 1980}
    assert fields["temperature_c"]["max"] == 61
    assert (fields["throttled"], fields["other_processes"], fields["mig"]) == ({}, 0, False)
    assert watch.marks() == []


def test_without_a_counter_power_is_integrated_and_the_query_named():
    fields = watched(FakeNVML(broken=("energy",))).fields()
    # 100, 110, ..., 140 W a second apart: trapezoids of 105, 115, 125, 135.
    assert (fields["energy_j"], fields["energy_from"]) == (480.0, "power over time")
    assert fields["unsupported"] == {"energy counter": "Not Supported"}


def test_what_cannot_be_read_is_none_and_never_made_up():
    fields = watched(FakeNVML(broken=("energy", "power", "reasons", "event reasons", "processes", "mig"))).fields()
    assert fields["energy_j"] is None and fields["power_w"]["mean"] is None
    assert fields["throttled"] is None and fields["other_processes"] is None and fields["mig"] is None
    assert fields["sm_mhz"]["median"] == 1500
    assert {"energy counter", "power", "clock reasons", "processes", "MIG mode"} == fields["unsupported"].keys()


def test_throttling_is_named_with_its_share_and_idling_is_none():
    # One reading when the source is opened, five in the window.
    reasons = [0, POWER_CAP | IDLE, POWER_CAP, THERMAL, 0, IDLE]
    for nvml in (FakeNVML(reasons=reasons), FakeNVML(reasons=reasons[1:], broken=("event reasons",))):
        watch = watched(nvml)
        assert watch.fields()["throttled"] == {"SW power cap": 0.4, "SW thermal slowdown": 0.2}
        assert watch.marks() == [
            "throttled: SW power cap in 40 % of the readings",
            "throttled: SW thermal slowdown in 20 % of the readings",
        ]


@pytest.mark.parametrize(
    ("pids", "others"), [([], 0), ([os.getpid()], 0), ([123456], 0), ([os.getpid(), 1, 2], 2), ([5, 6, 5], 1)]
)
def test_one_of_the_processes_is_us_by_whatever_number(pids, others):
    watch = watched(FakeNVML(pids=pids))
    assert watch.fields()["other_processes"] == others
    assert [mark.startswith(f"shared: {others} other process") for mark in watch.marks()] == [True] * bool(others)


def test_a_slice_of_a_gpu_is_said():
    watch = watched(FakeNVML(mig=1, handles=("MIG-u1",)))
    assert watch.source.handle == "parent of MIG-u1"
    assert watch.fields()["mig"] is True
    assert "slice" in watch.marks()[0]


def test_without_nvml_it_says_why_and_gives_nothing(monkeypatch):
    for source, reason in (
        (telemetry_gpu.open_source(CUDA, FakeNVML(broken=("init",))), "Not Supported"),
        (telemetry_gpu.open_source(CUDA, FakeNVML(handles=())), "Not Found"),
        (None, "pip install 'presto-kernels[bench]'"),
    ):
        monkeypatch.setitem(sys.modules, "pynvml", None)  # an import of it fails
        watch = telemetry.watch(CUDA) if source is None else telemetry.Watch(source)
        with watch:
            pass
        meta = {}
        watch.note(meta)
        told = meta["telemetry"]
        assert reason in told["reason"] and told["source"] is None and told["readings"] == 0
        assert told["energy_j"] is None and meta["marks"] == []
        with show.console.capture() as printed:
            show.telemetry(meta)
        assert "no telemetry" in printed.get()


def test_windows_add_up_and_the_thread_reads_while_one_is_open(monkeypatch):
    monkeypatch.setattr(telemetry_gpu.NVML, "period", 0.002)
    watch = telemetry.Watch(telemetry_gpu.open_source(CUDA, FakeNVML()))
    for _ in range(2):
        with watch:
            time.sleep(0.1)
    read = len(watch.readings)
    assert read > 8 and watch.seconds == pytest.approx(0.2, abs=0.15)
    assert watch.energy_j == 4.0
    time.sleep(0.02)
    assert len(watch.readings) == read
    assert sum(reading["first"] for reading in watch.readings) == 2


def linux(folder, *, load="0.10", busy=0, steal=0, energy=0):
    (folder / "proc").mkdir(exist_ok=True)
    (folder / "proc/loadavg").write_text(f"{load} 0.2 0.3 1/100 12345\n")
    (folder / "proc/cpuinfo").write_text("cpu MHz\t: 2000.4\ncpu MHz\t: 3000.2\n")
    user, idle, stolen = (100 * seconds * (os.cpu_count() or 1) for seconds in (busy, busy, steal))
    (folder / "proc/stat").write_text(f"cpu {user} 0 0 {idle} 0 0 0 {stolen} 0 0\n")
    for index, name in enumerate(("package-0", "package-1", "psys")):  # psys is the whole: not counted again
        zone = folder / f"sys/class/powercap/intel-rapl:{index}"
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "energy_uj").write_text(str(energy % 1_000_000_000))
        (zone / "name").write_text(f"{name}\n")
        (zone / "max_energy_range_uj").write_text("999999999")
    (folder / "sys/class/powercap/intel-rapl:0:0").mkdir(exist_ok=True)  # a part of package 0: not counted again


def test_a_cpus_energy_clock_and_neighbours(tmp_path):
    linux(tmp_path, load="3.12", energy=999_000_000)
    watch = telemetry.Watch(telemetry_cpu.Linux(tmp_path))
    with watch:
        linux(tmp_path, busy=1000, steal=500, energy=1_004_000_000)  # seconds of each core; the counters began anew
    fields = watch.fields()
    assert (fields["energy_j"], fields["energy_from"]) == (pytest.approx(10.0), "counter")
    assert fields["cpu_mhz"]["median"] == 2500 and fields["load_at_start"] == 3.12
    assert fields["cores_of_others"] == pytest.approx(0.4 * os.cpu_count(), abs=0.01) and fields["stolen"] == 0.2
    load, others, stolen = watch.marks()
    assert load == "load 3.1: something else runs here"
    assert others.startswith("shared: others used") and "hypervisor" in stolen


def test_a_quiet_machine_has_no_marks_and_unreadable_energy_a_reason(tmp_path):
    linux(tmp_path)
    for path in tmp_path.glob("sys/class/powercap/*/energy_uj"):
        path.unlink()
    watch = telemetry.Watch(telemetry_cpu.Linux(tmp_path))
    with watch:
        pass
    assert watch.energy_j is None and "cannot be read" in watch.fields()["no_energy"]
    assert watch.marks() == [] and watch.fields()["cores_of_others"] is None
    nothing = telemetry.Watch(telemetry_cpu.Linux(tmp_path / "empty"))
    with nothing:
        pass
    assert nothing.fields()["cpu_mhz"] is None and "no RAPL" in nothing.fields()["no_energy"]


def test_this_machine_can_be_watched():
    watch = telemetry.watch(CPU)
    with watch:
        sum(range(1000))
    json.dumps(watch.fields(), allow_nan=False)
    assert watch.fields()["source"] == "Linux" and watch.seconds > 0


def test_marks_are_shown_in_words(capsys):
    meta = {}
    watched(FakeNVML(reasons=[POWER_CAP], pids=[1, 2])).note(meta)
    with show.console.capture() as printed:
        show.telemetry(meta)
    text = printed.get()
    assert "120 of 700 W" in text and "1500 MHz SM" in text and "61 °C" in text
    assert "throttled: SW power cap in 100 % of the readings" in text and "shared: 1 other process on" in text


def test_a_result_says_which_gpu(monkeypatch):
    properties = types.SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, total_memory=150_000_000_000, L2_cache_size=60_000_000
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert machine.meta(CUDA)["gpu"] == {
        "compute_capability": "9.0",
        "sm_count": 132,
        "memory_bytes": 150_000_000_000,
        "l2_bytes": 60_000_000,
    }
    assert machine.meta(CPU)["gpu"] is None
