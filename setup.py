"""Builds csrc/ into presto_kernels/_C.abi3.so, or nothing where there is no C++ compiler.

One binary for every Python >= 3.11 and every torch >= 2.11, CPU or CUDA build: it uses torch's stable ABI alone.
torch's headers are found in the environment we install into even when the build is isolated.  With nvcc the CUDA
kernels come along; without it the CPU kernels alone; without a C++ compiler the package is pure Python and Triton,
and both this script and env_report say so.

    PRESTO_CUDA   auto (default: CUDA where nvcc is found), 0 or 1
    PRESTO_BUILD  auto (default), 0 builds nothing, 1 fails rather than build nothing
    PRESTO_OPTIMIZE  -O3 (default); a lower level compiles the CPU kernels sooner, for a build that only has to be right
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
TORCH = "torch==2.13.0"  # whose headers are used when no torch is installed yet
TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # the oldest torch the binary serves: 2.11

X86 = platform.machine() in ("x86_64", "AMD64")
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
ISA_FLAGS = {"avx2": _AVX2, "avx512": _AVX512, "avx512bf16": [*_AVX512, "-mavx512bf16"]} if X86 else {}

# sm_90a: Hopper's own instructions; the PTX at the end serves what comes after sm_100.
CUDA_ARCHS = [("80", "sm_80"), ("90a", "sm_90a"), ("100", "sm_100"), ("100", "compute_100")]


def say(message: str) -> None:
    print(f"presto-kernels: {message}", file=sys.stderr, flush=True)


def read_by(source: Path) -> set[Path]:
    """The file itself and all files of csrc/ that it includes, directly or not."""
    found: set[Path] = set()
    left = [source]
    while left:
        file = left.pop()
        found.add(file)
        for name in re.findall(r'^#include "(.+)"', file.read_text(), re.MULTILINE):
            candidates = (file.parent / name, ROOT / "csrc" / name)
            left += [path for path in candidates if path.exists() and path not in found]
    return found


def torch_include() -> Path | None:
    """torch's headers: of the torch that can be imported, else of the one in the environment behind build isolation."""
    spec = importlib.util.find_spec("torch")
    found = [Path(spec.origin).parent] if spec and spec.origin else []
    for folder in (*found, Path(sysconfig.get_path("platlib")) / "torch"):
        if (folder / "include/torch/csrc/stable/library.h").exists():
            return folder / "include"
    return None


def cxx() -> str | None:
    """The compiler's command: CXX where it is set, else g++ or c++."""
    for command in [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "c++"]:
        if shutil.which(command.split()[0]):
            return command
    return None


def cuda_home() -> Path | None:
    mode = os.environ.get("PRESTO_CUDA", "auto")
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), Path(nvcc).resolve().parents[1] if nvcc else None]
    for candidate in candidates if mode != "0" else ():
        if candidate and (Path(candidate) / "bin" / "nvcc").exists():
            return Path(candidate)
    if mode == "1":
        raise SystemExit("PRESTO_CUDA=1, but no nvcc was found: put it on the PATH or set CUDA_HOME")
    return None


class Build(build_ext):
    """Compiles each source with its own flags, side by side, then lets setuptools link the objects."""

    def build_extension(self, ext: Extension) -> None:
        self.force = True  # setuptools looks at ext.sources, which is empty; what is up to date is decided in _compile
        include, cuda = torch_include(), cuda_home()
        if include is None:
            raise CompileError(f"torch's headers were not found; install {TORCH} first, or build with isolation")
        flags = [
            os.environ.get("PRESTO_OPTIMIZE", "-O3"),
            "-std=c++20",
            "-fPIC",
            "-fvisibility=hidden",
            "-fno-math-errno",
            "-Wall",
            TARGET,
            f"-I{ROOT / 'csrc'}",
        ]
        flags += [f"-isystem{include}", f"-isystem{include / 'torch/csrc/api/include'}"]
        flags += ["-DPRESTO_CUDA"] if cuda else []
        # GCC 12 warns about its own AVX-512 header.
        isa_flags = ["-Wno-uninitialized", "-Wno-maybe-uninitialized", f"-I{ROOT / 'csrc/cpu'}"]
        by_isa = sorted(ROOT.glob("csrc/cpu/*_isa.cpp"))
        once = sorted({*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")} - set(by_isa))
        jobs = [(source, flags, f".{source.parent.name}") for source in once]
        jobs += [
            (source, [*flags, *isa_flags, f"-DPRESTO_ISA={isa}", *extra], f".{isa}")
            for source in by_isa
            for isa, extra in ISA_FLAGS.items()
        ]
        out = Path(self.build_temp).resolve()
        out.mkdir(parents=True, exist_ok=True)
        commands = [self._gxx(source, flags, out / f"{source.stem}{suffix}.o") for source, flags, suffix in jobs]
        if cuda:
            commands += [self._nvcc(cuda, source, out) for source in sorted(ROOT.glob("csrc/cuda/*.cu"))]
        say(
            f"compiling {len(commands)} files"
            + (" (CUDA: sm_80, sm_90a, sm_100, PTX)" if cuda else " (no nvcc: CPU only)")
        )
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self._compile, commands))
        ext.extra_objects = [command[-1] for command in commands]
        # Python loads torch's libraries for itself alone, so ours names the one it needs; every build of torch has it.
        ext.extra_link_args = [
            "-Wl,--exclude-libs,ALL",
            f"-L{include.parent / 'lib'}",
            "-Wl,--no-as-needed",
            "-ltorch_cpu",
        ]
        if cuda:
            runtime = next(cuda.glob("**/libcudart_static.a"))
            ext.extra_link_args += [str(runtime), "-lrt", "-ldl", "-lpthread"]
        super().build_extension(ext)

    @staticmethod
    def _gxx(source: Path, flags: list[str], target: Path) -> list[str]:
        return [*(cxx() or "g++").split(), *flags, "-c", str(source), "-o", str(target)]

    @staticmethod
    def _nvcc(cuda: Path, source: Path, out: Path) -> list[str]:
        archs = [f"-gencode=arch=compute_{arch},code={code}" for arch, code in CUDA_ARCHS]
        command = [str(cuda / "bin" / "nvcc"), "-O3", "-std=c++17", "-lineinfo", "--threads", "0"]
        command += ["-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{ROOT / 'csrc'}", *archs]
        return [*command, "-c", str(source), "-o", str(out / f"{source.stem}.cuda.o")]

    @staticmethod
    def _compile(command: list[str]) -> None:
        target = Path(command[-1])
        log = target.with_suffix(".command")
        newest = max(file.stat().st_mtime for file in (*read_by(Path(command[-3])), ROOT / "setup.py"))
        wanted = "\n".join(command)
        if target.exists() and target.stat().st_mtime > newest and log.exists() and log.read_text() == wanted:
            return
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            say("this did not compile; unless PRESTO_BUILD=1 there will be no library, only Triton and plain PyTorch")
            raise CompileError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        log.write_text(wanted)


def extensions() -> list[Extension]:
    mode = os.environ.get("PRESTO_BUILD", "auto")
    if mode == "0":
        say("PRESTO_BUILD=0: nothing is compiled; the ops run on Triton and plain PyTorch")
    elif cxx() is None:
        message = (
            "no C++ compiler: nothing is compiled; the ops run on Triton and plain PyTorch (get g++ and reinstall)"
        )
        if mode == "1":
            raise SystemExit(message)
        say(message)
    else:
        return [Extension("presto_kernels._C", sources=[], py_limited_api=True, language="c++", optional=mode != "1")]
    return []


ext_modules = extensions()
# An isolated build asks here what it needs (the `egg_info` call of PEP 517's hook): torch, only where none is found.
needs_torch = bool(ext_modules) and "egg_info" in sys.argv and torch_include() is None
setup(
    ext_modules=ext_modules,
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ext_modules else {},
    setup_requires=[TORCH] if needs_torch else [],
)
