"""The script that packs the kernel, and what it makes."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

import presto_kernels
from presto_kernels import _library

ROOT = Path(presto_kernels.__file__).parents[1]


@pytest.fixture(scope="session")
def hf_kernel():
    """scripts/hf_kernel.py as a module."""
    spec = importlib.util.spec_from_file_location("hf_kernel", ROOT / "scripts/hf_kernel.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def kernels():
    return pytest.importorskip("kernels", reason="Hugging Face's `kernels` is not installed: pip install kernels")


@pytest.fixture(scope="session")
def project(hf_kernel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    hf_kernel.write_project(folder)
    return folder


@pytest.fixture(scope="session")
def repository(hf_kernel, tmp_path_factory):
    """Python and Triton alone."""
    folder = tmp_path_factory.mktemp("repository")
    hf_kernel.write_build(folder, unique="test")
    return folder


@pytest.fixture(scope="session")
def compiled_repository(hf_kernel, kernels, tmp_path_factory):
    """With the CPU kernels, in a namespace of their own."""
    if not os.environ.get("PRESTO_TEST_COMPILED_KERNEL"):
        pytest.skip("PRESTO_TEST_COMPILED_KERNEL is not set: compiling the kernels once more takes minutes")
    if not _library.has_cpu_kernels:
        pytest.skip(f"no CPU kernels: {_library.error}")
    if not shutil.which("g++"):
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRESTO_OPTIMIZE", "-O0")
        hf_kernel.write_build(folder, compiled=True, unique="test")
    return folder
