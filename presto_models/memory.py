"""How much memory this process holds, and the most it has held: of the device, or of the process on a CPU."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


class Meter:
    """Bytes of a device.  On a CPU those of the whole process, so nothing else may run in it meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"

    def held(self) -> int:
        """Now: in tensors on a GPU, resident on a CPU."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
            return torch.cuda.memory_allocated(self.device)
        try:
            return int((PROCESS / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return self.peak()

    def reset(self) -> bool:
        """From here on :meth:`peak` counts anew; False where the kernel does not allow that and it goes on counting
        since the start."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            return True
        try:
            (PROCESS / "clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def peak(self) -> int:
        """The most since the last :meth:`reset`."""
        if self.cuda:
            return torch.cuda.max_memory_allocated(self.device)
        # Not ru_maxrss where there is another way: a process inherits that of the one that started it.
        try:
            lines = (PROCESS / "status").read_text().splitlines()
        except OSError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    def available(self) -> int | None:
        """What could still be taken without pushing anything out; None where the system does not tell."""
        if self.cuda:
            return torch.cuda.mem_get_info(self.device)[0]
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)

    def reserved(self) -> int | None:
        """The most the GPU's allocator took from the driver since the last :meth:`reset`; None on a CPU."""
        return torch.cuda.max_memory_reserved(self.device) if self.cuda else None


def give_back() -> None:
    """What was freed goes back to the system, so that what comes is not hidden in it; glibc keeps it otherwise."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
