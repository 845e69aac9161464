"""The library once more, each op with one deliberate mistake: the tolerance has to catch it."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import presto_kernels
from presto_kernels import _library
from presto_kernels.ops.operators import SCHEMAS

HERE = Path(__file__).parent
ROOT = Path(presto_kernels.__file__).parents[1]

_spec = importlib.util.spec_from_file_location("presto_mistakes", HERE / "mistakes.py")
assert _spec is not None and _spec.loader is not None
_mistakes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_mistakes)


@pytest.fixture(scope="session")
def broken_operators(tmp_path_factory, worker_id):
    """``torch.ops.presto_broken``: every operator of the library, on the broken CPU kernels.  Built once a session."""
    if not _library.has_cpu_kernels:
        pytest.skip(f"no CPU kernels: {_library.error}")
    if not (shutil.which("g++") or shutil.which("c++")):
        pytest.skip("no C++ compiler")
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent  # of all of xdist's workers
    with FileLock(shared / "broken.lock"):
        library = shared / "broken" / "presto_kernels" / "_C.abi3.so"
        if not library.exists():
            build(shared / "broken")
    for name, schema in SCHEMAS.items():
        torch.library.define(f"presto_broken::{name}", schema)
    torch.ops.load_library(str(library))
    return torch.ops.presto_broken


def build(tree: Path) -> None:
    shutil.rmtree(tree, ignore_errors=True)  # of a worker that failed
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    shutil.copytree(ROOT / "presto_kernels", tree / "presto_kernels", ignore=shutil.ignore_patterns("*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree / name)
    for name, mistakes in _mistakes.MISTAKES.items():
        text = (tree / "csrc" / name).read_text()
        for right, wrong in mistakes.values():
            assert text.count(right) == 1, f"{name} no longer says {right!r} once: choose another mistake"
            text = text.replace(right, wrong)
        (tree / "csrc" / name).write_text(text)
    for source in (tree / "csrc").glob("*.cpp"):
        source.write_text(source.read_text().replace("(presto_kernels,", "(presto_broken,"))
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    environment = {**os.environ, "PRESTO_CUDA": "0", "PRESTO_BUILD": "1", "PRESTO_OPTIMIZE": "-O0"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
