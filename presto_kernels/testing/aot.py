"""What the compilers make of every kernel, for GPUs that are not here: registers, spills, access widths.

Triton kernels are compiled from the very :class:`~presto_kernels.ops.modulation.triton_kernels.Launch` objects that
the launcher runs, CUDA kernels with the options of setup.py; both are then disassembled.  Needs no GPU.  Results are
kept on disk, keyed by source, options and compiler version, so that a second run compiles nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
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


def compile_triton(
    archs: tuple[int, ...] = ARCHS, *, progress: Progress | None = None, cache: Path = CACHE
) -> list[AotRecord]:
    """Every Triton kernel of the package in the variants of :data:`CALLS`.  ``Unavailable`` without triton."""
    return _run(_triton_jobs(archs), progress, cache)


def compile_cuda(
    archs: tuple[int, ...] = ARCHS, *, progress: Progress | None = None, cache: Path = CACHE
) -> list[AotRecord]:
    """Every kernel of csrc/cuda/*.cu.  ``Unavailable`` without nvcc or outside a checkout."""
    return _run(_cuda_jobs(archs), progress, cache)


def compile_all(archs: tuple[int, ...] = ARCHS, *, progress: Progress | None = None, cache: Path = CACHE) -> AotResult:
    """Both, side by side; ``skipped`` names what is not available.  ``progress(done, total, what)`` as it goes."""
    jobs, skipped = [], []
    for make in (_cuda_jobs, _triton_jobs):
        try:
            jobs += make(archs)
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
        code[name] = _Code(*usage[name], spills, *counts)
    return code


# Triton


@dataclass(frozen=True)
class Call:
    """One call of an op of the AdaLN family.  Modulations: "B" per sample, "N" per token, "D" for all, None absent."""

    variant: str
    branch: bool = True
    norm: str | None = "layer"
    gate_fn: str = "identity"
    gate: str | None = "B"
    scale: str | None = "B"
    shift: str | None = "B"
    weight: str | None = None
    bias: str | None = None


_SEAM = Call("gated_residual_adaln")
_ADALN = replace(_SEAM, variant="adaln_modulate", branch=False, gate=None)
_GATED = replace(_SEAM, variant="gated_residual", norm=None, scale=None, shift=None)
# (call, dtype, D)
CALLS = (
    *((call, dtype, 1024) for dtype in (torch.bfloat16, torch.float32) for call in (_SEAM, _ADALN, _GATED)),
    (_SEAM, torch.bfloat16, 1000),
    (replace(_SEAM, variant="gated_residual_adaln, weight and bias", weight="D", bias="D"), torch.bfloat16, 1024),
    (replace(_SEAM, variant="gated_residual_adaln, per token", gate="N", scale="N", shift="N"), torch.bfloat16, 1024),
    (replace(_ADALN, variant="adaln_modulate, rms, weight", norm="rms", weight="D"), torch.bfloat16, 1024),
    (replace(_GATED, variant="gated_residual, sigmoid", gate_fn="sigmoid_one_minus"), torch.bfloat16, 1024),
)

_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def launches(call: Call, dtype: torch.dtype, dim: int, *, batch: int = 2, tokens: int = 33) -> list[Any]:
    """The forward and backward launches of a call, on tensors that hold no data."""
    from presto_kernels.ops.modulation import operators, triton_kernels

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def modulation(kind: str | None) -> Tensor | None:
        return None if kind is None else empty(*{"B": (batch, dim), "N": (batch, tokens, dim), "D": (dim,)}[kind])

    x, stats = empty(batch, tokens, dim), empty(batch, tokens, 2, dtype=torch.float32)
    branch = x if call.branch else None
    norm, gate_fn = operators.NORMS[call.norm], operators.GATE_FNS[call.gate_fn]
    gate, scale, shift, weight, bias = map(modulation, (call.gate, call.scale, call.shift, call.weight, call.bias))
    forward = triton_kernels.plan_forward(
        x, branch, gate, scale, shift, weight, bias, branch, x if norm else None, stats if norm else None,
        norm=norm, gate_fn=gate_fn, eps=1e-6,
    )  # fmt: skip
    owners = {"x": x, "branch": branch, "gate": gate, "scale": scale, "shift": shift, "weight": weight, "bias": bias}
    backward = triton_kernels.plan_backward(
        branch, x if norm else None, x, stats, branch, gate, scale, weight, bias,
        {name: owner for name, owner in owners.items() if owner is not None},
        norm=norm, gate_fn=gate_fn, multiprocessors=132,
    )  # fmt: skip
    return [forward, *backward]


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


def _triton_jobs(archs: tuple[int, ...]) -> list[_Job]:
    if find_spec("triton") is None:
        raise Unavailable("Triton kernels: triton is not installed")
    import triton

    if triton.knobs.runtime.interpret:
        raise Unavailable("Triton kernels: TRITON_INTERPRET is set, so there is no compiler in this process")
    for name in ("cuobjdump", "nvdisasm"):
        _tool(name)
    jobs: dict[str, _Job] = {}
    for arch in archs:
        for call, dtype, dim in CALLS:
            for launch in launches(call, dtype, dim):
                types, constants = signature(launch)
                what = (triton.__version__, launch.kernel.cache_key, types, constants, launch.options, arch)
                record = {
                    "kernel": launch.kernel.fn.__name__,
                    "implementation": "triton",
                    "arch": arch,
                    "dtype": _NAMES[dtype],
                    "variant": f"{call.variant}, D={dim}",
                }
                # The same code serves several calls: named after the first.
                jobs.setdefault(repr(what), _Job(**_triton_job(launch, types, constants, record, repr(what))))
    return list(jobs.values())


def _triton_job(launch: Any, types: dict[str, str], constants: dict[str, Any], record: dict[str, Any], key: str):
    def work() -> list[AotRecord]:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        source = ASTSource(fn=launch.kernel, signature=types, constexprs=constants)
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
_DTYPES = {"0": "fp32", "1": "fp16", "2": "bf16"}  # presto::DType of csrc/modulation.h


def _cuda_jobs(archs: tuple[int, ...]) -> list[_Job]:
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)
    sources = sorted(CSRC.glob("cuda/*.cu"))
    if not sources:
        raise Unavailable(f"CUDA kernels: no csrc/cuda/*.cu beside the package ({CSRC.parent}); run from a checkout")
    if nvcc is None:
        raise Unavailable("CUDA kernels: nvcc is not on the PATH; install the CUDA toolkit or set CUDA_HOME")
    for name in ("cuobjdump", "nvdisasm"):
        _tool(name)
    text = "".join(file.read_text() for file in sorted(CSRC.glob("**/*")) if file.suffix in (".cu", ".cuh", ".h"))
    version = _output(nvcc, "--version")
    return [
        _Job(f"{source.name} sm_{arch}", "\n".join((version, *_NVCC_FLAGS, str(arch), source.name, text)),
             _cuda_work(nvcc, source, arch))
        for source in sources
        for arch in archs
    ]  # fmt: skip


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
