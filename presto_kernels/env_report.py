"""``python -m presto_kernels.env_report``: what is there, what is missing, how to get it.  ``--json`` for machines."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from dataclasses import asdict, dataclass

import torch

from presto_kernels import _library, available_backends


@dataclass(frozen=True)
class Item:
    """One line: ``advice`` says how to get what is missing, and is empty where nothing is."""

    name: str
    found: str
    advice: str = ""


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "present"


def _package(package: str, advice: str) -> Item:
    version = _version(package)
    return Item(package, version or "not installed", "" if version else advice)


def _processor() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()}, {os.cpu_count()} cores, PyTorch uses {capability}"


def _gpu() -> Item:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Item("GPU", ", ".join(names))
    if torch.version.cuda:
        return Item(
            "GPU", f"torch has CUDA {torch.version.cuda}, but sees no device", "check the driver with nvidia-smi"
        )
    return Item("GPU", "this torch has no CUDA", "pip install a CUDA build of torch; the CPU path works as it is")


def _libraries() -> list[Item]:
    build = "pip install --force-reinstall --no-deps . (from a checkout, with a C++ compiler)"
    if not _library.loaded:
        compiler = shutil.which("g++") or shutil.which("c++")
        return [
            Item("compiled library", f"none: {_library.error}", build if compiler else f"install g++, then {build}")
        ]
    items = [Item("CPU kernels", _library.instruction_set)]
    if not _library.has_cpu_kernels:
        items = [Item("CPU kernels", "none for this processor", "x86-64 with AVX2 or AVX-512 is what they need")]
    if _library.has_cuda_code:
        launches = "" if _library.has_cuda_kernels else "; this torch cannot launch them"
        items.append(Item("CUDA kernels", "built in for sm_80, sm_90a, sm_100 and PTX" + launches))
    else:
        nvcc = shutil.which("nvcc")
        items.append(
            Item("CUDA kernels", "not built in", build if nvcc else f"put CUDA's nvcc on the PATH, then {build}")
        )
    return items


def report() -> list[Item]:
    """Everything that decides which implementation runs."""
    return [
        Item("Python", platform.python_version()),
        Item("torch", torch.__version__),
        Item("processor", _processor()),
        *_libraries(),
        _gpu(),
        _package("triton", "pip install triton (Linux): kernels for GPUs that no CUDA code was built for"),
        _package("flash-attn", "optional attention backend: pip install flash-attn"),
    ]


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m presto_kernels.env_report", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    items, ops = report(), available_backends()
    if parser.parse_args().json:
        print(json.dumps({"items": [asdict(item) for item in items], "backends": ops}, indent=2))
        return
    for item in items:
        print(f"{item.name:<17} {item.found}")
        if item.advice:
            print(f"{'':<17}   to get it: {item.advice}")
    print("\nops, and what can run them here:")
    for op, names in ops.items():
        print(f"  {op:<21} {', '.join(names)}")


if __name__ == "__main__":
    main()
