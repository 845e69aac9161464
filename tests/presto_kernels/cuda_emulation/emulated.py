"""csrc/cuda compiled by g++ on the emulation of CUDA in include/, so that its kernels run without a GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
FLAGS = [
    "-std=c++17",
    "-O1",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fPIC",
    "-shared",
    "-w",
    "-U_FORTIFY_SOURCE",
    "-fno-gnu-unique",  # or the libraries of two families in a process count each other's launches
]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: the CUDA emulation cannot be built")


def build(family: str, folder: Path) -> ctypes.CDLL:
    """The library of <family>.cpp."""
    target = folder / f"{family}.so"
    includes = [f"-I{HERE / 'include'}", f"-I{CSRC}"]
    subprocess.run(["g++", *FLAGS, *includes, str(HERE / f"{family}.cpp"), "-o", str(target)], check=True)
    loaded = ctypes.CDLL(str(target))
    loaded.take_launches.restype = ctypes.c_char_p
    return loaded
