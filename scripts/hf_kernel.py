"""The package in the layout of Hugging Face ``kernels`` (docs/hf-kernels.md).

    python scripts/hf_kernel.py project FOLDER            the project that kernel-builder builds: hf/, csrc/, torch-ext/
    python scripts/hf_kernel.py build FOLDER              what ``kernels.get_local_kernel`` loads: Python and Triton
    python scripts/hf_kernel.py build FOLDER --compile    and the CPU kernels, compiled here: to try, not for the Hub

A kernel of the Hub may be loaded from any folder, in two versions at once: it imports itself relatively, and its
operators have a namespace of the build.  The package is not written like that, so the copy made here is.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = "presto_kernels"
LEFT_OUT = ("testing", "env_report.py", "_ops.py")  # _ops.py says the namespace: every build writes its own

INSTRUCTION_SETS = ("avx2", "avx512", "avx512bf16")

OPS = '''import torch
{load}
ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    """Prefix op by namespace."""
    return f"{id}::{{op_name}}"
'''
LOAD = """from pathlib import Path

torch.ops.load_library(str(Path(__file__).with_name("{id}.abi3.so")))
"""


def relative_imports(text: str, depth: int) -> str:
    """``text`` of a module ``depth`` packages deep, with its imports of the package made relative."""
    dots = "." * (depth + 1)
    return re.sub(rf"^(\s*)from {PACKAGE}\b\.?([\w.]*) import", rf"\1from {dots}\2 import", text, flags=re.MULTILINE)


def copy_package(target: Path) -> None:
    """The package's Python and its tables, relative, without what a kernel does not need."""
    source = ROOT / PACKAGE
    for file in sorted([*source.rglob("*.py"), *source.rglob("*.json")]):
        path = file.relative_to(source)
        if path.parts[0] in LEFT_OUT:
            continue
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text()
        (target / path).write_text(relative_imports(text, len(path.parts) - 1) if file.suffix == ".py" else text)


def copy_sources(target: Path) -> None:
    """csrc/, with a copy of each *_isa.cpp per instruction set: CMake gives a file one set of flags."""
    shutil.copytree(ROOT / "csrc", target, ignore=shutil.ignore_patterns("*_isa.cpp"))
    for isa in INSTRUCTION_SETS:
        (target / "cpu" / isa).mkdir()
        for file in (ROOT / "csrc/cpu").glob("*_isa.cpp"):
            shutil.copy(file, target / "cpu" / isa)


def expand(build_toml: str, folder: Path) -> str:
    """build.toml with every pattern replaced by the files of ``folder`` that it finds; it must find some."""

    def names(match: re.Match[str]) -> str:
        files = sorted(folder.glob(match[1]))
        if not files:
            raise SystemExit(f"hf/build.toml: {match[1]!r} finds no file")
        return ", ".join(f'"{file.relative_to(folder)}"' for file in files)

    return re.sub(r'"([\w./]*\*[\w.*]*)"', names, build_toml)


def write_project(folder: Path) -> None:
    """All that kernel-builder needs, in a folder that is new or empty."""
    copy_sources(folder / "csrc")
    copy_package(folder / "torch-ext" / PACKAGE)
    shutil.copy(ROOT / "hf/torch_binding.cpp", folder / "torch-ext")
    shutil.copy(ROOT / "hf/flake.nix", folder)
    (folder / "build.toml").write_text(expand((ROOT / "hf/build.toml").read_text(), folder))


def unique_id() -> str:
    """As kernel-builder makes it: the commit's tree, and whether files differ from it; random outside git."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=7", "HEAD^{tree}") + ("_dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return secrets.token_hex(4)


def finish_variant(folder: Path, config: dict[str, Any], backend: str, build_id: str, load: str = "") -> None:
    """``_ops.py`` and ``metadata.json`` of one build variant."""
    (folder / "_ops.py").write_text(OPS.format(id=build_id, load=load.format(id=build_id)))
    files = {
        str(file.relative_to(folder)): base64.b64encode(hashlib.sha256(file.read_bytes()).digest()).decode()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    general = config["general"]
    metadata = {
        "name": general["name"],
        "id": build_id,
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": files},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def compile_library(project: Path, config: dict[str, Any], library: Path) -> None:
    """The CPU kernels of a project, with the flags its build.toml has, as kernel-builder would compile them."""
    import torch
    from rich.console import Console
    from rich.progress import track

    include = Path(torch.__file__).parent / "include"
    major, minor = config["torch"]["stable-abi"]["cpu"].split(".")
    common = [os.environ.get("PRESTO_OPTIMIZE", "-O3"), "-fPIC", "-DCPU_KERNEL"]
    common.append(f"-DTORCH_EXTENSION_NAME={library.name.split('.')[0]}")
    common.append(f"-DTORCH_TARGET_VERSION={int(major) << 56 | int(minor) << 48:#x}")
    common += [f"-isystem{include}", f"-isystem{include / 'torch/csrc/api/include'}"]
    compiler = os.environ.get("CXX", "g++").split()
    jobs = []
    for kernel in config["kernel"].values():
        if kernel["backend"] == "cpu":
            flags = [*common, *kernel["cxx-flags"], *(f"-I{project / path}" for path in kernel["include"])]
            jobs += [(project / name, flags) for name in kernel["src"] if name.endswith(".cpp")]

    def compile_one(job: tuple[Path, list[str]]) -> str:
        source, flags = job
        out = f"{source}.o"
        done = subprocess.run([*compiler, *flags, "-c", source, "-o", out], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{source.relative_to(project)} does not compile:\n{done.stderr}")
        return out

    console, quiet = Console(stderr=True), not sys.stderr.isatty()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(compile_one, jobs)
        bar = track(done, "compiling", len(jobs), console=console, transient=True, disable=quiet)
        objects: list[str | Path] = list(bar)
    link = ["-shared", f"-L{include.parent / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-o", library]
    subprocess.run([*compiler, *objects, *link], check=True)


def write_build(folder: Path, *, compiled: bool = False, unique: str | None = None) -> list[Path]:
    """The build variants under ``folder``/build; returns their folders.

    torch-cpu and torch-cuda hold Python and Triton; with ``compiled``, a third one the CPU kernels too, and ``kernels``
    prefers it where it fits.  ``unique``: what sets this build's namespaces apart (default: :func:`unique_id`).
    """
    config = tomllib.loads((ROOT / "hf/build.toml").read_text())
    unique = unique or unique_id()
    variants = []
    for backend in config["general"]["backends"]:
        variants.append(folder / "build" / f"torch-{backend}")
        copy_package(variants[-1])
        finish_variant(variants[-1], config, backend, f"_{PACKAGE}_{backend}_{unique}_python")
    if compiled:
        machine = os.uname()
        name = f"torch-stable-abi{config['torch']['stable-abi']['cpu'].replace('.', '')}-cpu-{machine.machine}-linux"
        build_id = f"_{PACKAGE}_cpu_{unique}"
        project = folder / "project"
        write_project(project)
        variants.append(folder / "build" / name)
        copy_package(variants[-1])
        expanded = tomllib.loads((project / "build.toml").read_text())
        compile_library(project, expanded, variants[-1] / f"{build_id}.abi3.so")
        finish_variant(variants[-1], config, "cpu", build_id, LOAD)
        shutil.rmtree(project)
    return variants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("project", "build"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--compile", action="store_true", help="with build: the CPU kernels too")
    arguments = parser.parse_args()
    folder = arguments.folder
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    if arguments.compile and arguments.what == "project":
        parser.error("--compile belongs to build; kernel-builder compiles a project")
    if arguments.what == "project":
        write_project(folder)
        print(folder)
    else:
        print(*write_build(folder, compiled=arguments.compile), sep="\n")


if __name__ == "__main__":
    main()
