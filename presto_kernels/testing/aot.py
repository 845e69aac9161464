"""What the compilers make of every kernel, for GPUs that are not here: registers, spills, access widths.

Triton kernels are compiled from the very :class:`~presto_kernels.ops.triton_common.Launch` objects that
the launcher runs, CUDA kernels with the options of setup.py; both are then disassembled.  Needs no GPU.  Results are
kept on disk, keyed by source, options and compiler version, so that a second run compiles nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import presto_kernels

ARCHS = (80, 90, 100)
CACHE = Path.home() / ".cache" / "presto_kernels" / "aot"
CSRC = Path(presto_kernels.__file__).parents[1] / "csrc"

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class AotRecord:
    """One compiled kernel.  ``arch`` is ten times the compute capability; accesses are counted as instructions."""

    kernel: str
    implementation: str  # "triton" or "cuda"
    arch: int
    dtype: str  # of x; "x/branch/modulation" where they differ; "any" where the kernel asks when it runs
    variant: str
    registers: int  # per thread
    spills: int  # bytes a thread stores to local memory, counted once for every store instruction
    shared: int  # bytes a block
    loads16: int  # loads from global memory, 16 bytes or wider
    loads_other: int
    stores16: int
    stores_other: int
    hmma: int  # matrix instructions of Ampere's kind,
    hgmma: int  # of Hopper's,
    tcgen05: int  # and of Blackwell's


@dataclass(frozen=True)
class AotResult:
    records: list[AotRecord]
    skipped: list[str]  # what could not be compiled, and why


class Unavailable(RuntimeError):
    """A compiler or a tool is not there; the message says which."""


@dataclass(frozen=True)
class _Job:
    name: str
    key: str
    work: Callable[[], list[AotRecord]]


_PARSING = threading.Lock()  # Python 3.11 counts the depth of a syntax tree once for all threads (cpython #106905)


def compile_triton(
    archs: tuple[int, ...] = ARCHS,
    *,
    families: tuple[str, ...] | None = None,
    progress: Progress | None = None,
    cache: Path = CACHE,
) -> list[AotRecord]:
    """Every Triton kernel of these families (None: :data:`FAMILIES`).  ``Unavailable`` without triton."""
    return _run(_triton_jobs(archs, FAMILIES if families is None else families), progress, cache)


def compile_cuda(
    archs: tuple[int, ...] = ARCHS,
    *,
    families: tuple[str, ...] | None = None,
    progress: Progress | None = None,
    cache: Path = CACHE,
) -> list[AotRecord]:
    """Every kernel of csrc/cuda/<family>.cu.  ``Unavailable`` without nvcc or outside a checkout."""
    return _run(_cuda_jobs(archs, FAMILIES if families is None else families), progress, cache)


def compile_all(archs: tuple[int, ...] = ARCHS, *, progress: Progress | None = None, cache: Path = CACHE) -> AotResult:
    """Both, side by side; ``skipped`` names what is not available.  ``progress(done, total, what)`` as it goes."""
    jobs, skipped = [], []
    for make in (_cuda_jobs, _triton_jobs):
        try:
            jobs += make(archs, FAMILIES)
        except Unavailable as missing:
            skipped.append(str(missing))
    return AotResult(_run(jobs, progress, cache), skipped)


def _run(jobs: list[_Job], progress: Progress | None, cache: Path) -> list[AotRecord]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(_cached, job, cache): job for job in jobs}
        for done, future in enumerate(as_completed(running), 1):
            future.result()  # a compile error ends it here
            if progress is not None:
                progress(done, len(jobs), running[future].name)
    return [record for future in running for record in future.result()]


def _cached(job: _Job, cache: Path) -> list[AotRecord]:
    digest = hashlib.sha256((Path(__file__).read_text() + job.key).encode()).hexdigest()
    file = cache / f"{digest[:32]}.json"
    if file.exists():
        return [AotRecord(**record) for record in json.loads(file.read_text())]
    records = job.work()
    with contextlib.suppress(OSError):  # a home that cannot be written costs time, not the result
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache, suffix=".part", delete=False) as part:
            json.dump([asdict(record) for record in records], part)
        os.replace(part.name, file)
    return records


# Disassembly


@dataclass(frozen=True)
class _Code:
    registers: int
    shared: int
    spills: int
    loads16: int
    loads_other: int
    stores16: int
    stores_other: int
    hmma: int
    hgmma: int
    tcgen05: int


def _tool(name: str) -> str:
    """A CUDA binary tool: on the PATH, else the one that triton ships."""
    spec = find_spec("triton")
    ours = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name if spec and spec.origin else None
    found = shutil.which(name) or (str(ours) if ours and ours.exists() else None)
    if found is None:
        raise Unavailable(f"{name}: neither on the PATH (CUDA toolkit) nor in triton; install one of them")
    return found


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


_USAGE = re.compile(r"Function (\S+):\s*REG:(\d+) STACK:\d+ SHARED:(\d+)")
_FUNCTION = re.compile(r"^\.text\.(\S+):$", re.MULTILINE)
_GLOBAL = re.compile(r"\b(LD|ST)G?\.E(\S*)")
_SPILL = re.compile(r"\bSTL(?:\.(U8|S8|U16|S16|64|128))?\b")
_MATRIX = re.compile(r"\b(HMMA|HGMMA|UTCHMMA)\b")
_SPILL_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "": 4, "64": 8, "128": 16}


def _disassemble(cubin: Path, arch: int) -> dict[str, _Code]:
    """What the machine code of each function in a cubin holds."""
    reserved = 1024 if arch >= 90 else 0  # bytes that the system adds to a block's shared memory where it has any
    usage = {
        name: (int(reg), max(0, int(shared) - reserved))
        for name, reg, shared in _USAGE.findall(_output(_tool("cuobjdump"), "-res-usage", str(cubin)))
    }
    _, *parts = _FUNCTION.split(_output(_tool("nvdisasm"), "-c", "-ndf", str(cubin)))
    code = {}
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        if name not in usage:
            continue
        wide = Counter((kind, ".128" in rest or ".256" in rest) for kind, rest in _GLOBAL.findall(text))
        spills = sum(_SPILL_BYTES[width] for width in _SPILL.findall(text))
        counts = (wide["LD", True], wide["LD", False], wide["ST", True], wide["ST", False])
        matrix = Counter(_MATRIX.findall(text))
        code[name] = _Code(*usage[name], spills, *counts, matrix["HMMA"], matrix["HGMMA"], matrix["UTCHMMA"])
    return code


# Triton


@dataclass(frozen=True)
class Variant:
    """One call of a family's op, and the launches it makes, on tensors that hold no data."""

    name: str
    dtype: torch.dtype
    launches: list[Any]


# ``presto_kernels.testing.aot_<family>.variants()`` gives a family's Triton launches.
FAMILIES = ("modulation", "rotary", "activation", "sampler", "attention")
_NAMES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


def signature(launch: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """(types, constants) that Triton compiles a launch for: nothing is specialised on a value that is no constexpr."""
    types, constants = {}, {}
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            types[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            types[parameter.name] = f"*{_NAMES[value.dtype]}"
        else:
            types[parameter.name] = parameter.annotation_type
    return types, constants


def _triton_jobs(archs: tuple[int, ...], names: tuple[str, ...]) -> list[_Job]:
    if find_spec("triton") is None:
        raise Unavailable("Triton kernels: triton is not installed")
    import triton

    if triton.knobs.runtime.interpret:
        raise Unavailable("Triton kernels: TRITON_INTERPRET is set, so there is no compiler in this process")
    for name in ("cuobjdump", "nvdisasm"):
        _tool(name)
    jobs: dict[str, _Job] = {}
    families = [importlib.import_module(f"presto_kernels.testing.aot_{family}") for family in names]
    variants = [variant for family in families for variant in family.variants()]
    for arch in archs:
        for variant in variants:
            for launch in variant.launches:
                types, constants = signature(launch)
                what = (triton.__version__, launch.kernel.cache_key, types, constants, launch.options, arch)
                record = {
                    "kernel": launch.kernel.fn.__name__,
                    "implementation": "triton",
                    "arch": arch,
                    "dtype": _NAMES[variant.dtype],
                    "variant": variant.name,
                }
                # The same code serves several calls: named after the first.
                jobs.setdefault(repr(what), _Job(**_triton_job(launch, types, constants, record, repr(what))))
    return list(jobs.values())


def _triton_job(launch: Any, types: dict[str, str], constants: dict[str, Any], record: dict[str, Any], key: str):
    def work() -> list[AotRecord]:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        class Source(ASTSource):
            def make_ir(self, *args: Any, **given: Any) -> Any:
                with _PARSING:
                    return super().make_ir(*args, **given)

        source = Source(fn=launch.kernel, signature=types, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", record["arch"], 32), options=launch.options)
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            (code,) = _disassemble(cubin, record["arch"]).values()
        # Triton asks for its shared memory at launch.
        return [AotRecord(**record, **asdict(replace(code, shared=code.shared + compiled.metadata.shared)))]

    return {"name": f"{record['kernel']} sm_{record['arch']}", "key": key, "work": work}


# CUDA

# As setup.py compiles: sm_90a has Hopper's own instructions.
_NVCC_FLAGS = ("-cubin", "-O3", "-std=c++17")
_NVCC_ARCHS = {80: "80", 90: "90a", 100: "100"}
_DTYPES = {"0": "fp32", "1": "fp16", "2": "bf16"}  # presto::DType of csrc/rows.h


def _cuda_jobs(archs: tuple[int, ...], names: tuple[str, ...]) -> list[_Job]:
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)
    sources = [file for file in (CSRC / "cuda" / f"{name}.cu" for name in names) if file.exists()]
    if not sources:
        raise Unavailable(f"CUDA kernels: no csrc/cuda/*.cu beside the package ({CSRC.parent}); run from a checkout")
    if nvcc is None:
        raise Unavailable("CUDA kernels: nvcc is not on the PATH; install the CUDA toolkit or set CUDA_HOME")
    for name in ("cuobjdump", "nvdisasm"):
        _tool(name)
    version = _output(nvcc, "--version")
    return [
        _Job(f"{source.name} sm_{arch}", "\n".join((version, *_NVCC_FLAGS, str(arch), source.name, _text(source))),
             _cuda_work(nvcc, source, arch))
        for source in sources
        for arch in archs
    ]  # fmt: skip


def _text(source: Path) -> str:
    """The source and everything of csrc/ that it includes, directly or not."""
    texts: dict[Path, str] = {}
    left = [source]
    while left:
        file = left.pop()
        texts[file] = file.read_text()
        for name in re.findall(r'^#include "(.+)"', texts[file], re.MULTILINE):
            candidates = (file.parent / name, CSRC / name)
            left += [path.resolve() for path in candidates if path.exists() and path.resolve() not in texts]
    return "".join(texts[file] for file in sorted(texts))


def _cuda_work(nvcc: str, source: Path, arch: int) -> Callable[[], list[AotRecord]]:
    def work() -> list[AotRecord]:
        target = _NVCC_ARCHS.get(arch, str(arch))
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernels.cubin"
            target = f"-gencode=arch=compute_{target},code=sm_{target}"
            _output(nvcc, *_NVCC_FLAGS, f"-I{CSRC}", target, str(source), "-o", str(cubin))
            return [
                AotRecord(kernel, "cuda", arch, dtype, variant, **asdict(code))
                for symbol, code in _disassemble(cubin, arch).items()
                for kernel, dtype, variant in [_read_symbol(symbol)]
            ]

    return work


_TEMPLATE_ARGUMENT = re.compile(r"L(NS_5DTypeE|S\d*_|[a-z])(\d+)E")


def _read_symbol(symbol: str) -> tuple[str, str, str]:
    """(name, dtype, other template arguments) of a mangled kernel: ``name<DType..., int...>`` in nested namespaces."""
    at, name = 3, symbol  # after _ZN
    while length := re.match(r"\d+", symbol[at:]):
        end = at + length.end() + int(length.group())
        at, name = end, symbol[at + length.end() : end]
    arguments = _TEMPLATE_ARGUMENT.findall(symbol[at:].split("Ev", 1)[0] + "E") if symbol[at : at + 1] == "I" else []
    dtypes = [_DTYPES.get(value, value) for kind, value in arguments if len(kind) > 1]
    others = [value for kind, value in arguments if len(kind) == 1]
    dtype = (dtypes[0] if len(set(dtypes)) == 1 else "/".join(dtypes)) if dtypes else "any"
    return name, dtype, f"<{', '.join(others)}>" if others else ""
