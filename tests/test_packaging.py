"""What `pip install .` puts on a machine: with no compiler, and what the wheel holds."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "csrc", "presto_kernels", "presto_models", "bench")


def wheel(folder: Path, **environment: str) -> tuple[Path, str]:
    """Build a wheel of a copy of the checkout, so that nothing built earlier gets in."""
    tree = folder / "tree"
    tree.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-v",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        tree,
    ]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built, done.stdout + done.stderr


def test_without_a_compiler_the_wheel_is_pure_and_says_so(tmp_path):
    built, log = wheel(tmp_path, CXX="no-such-compiler", PATH=os.path.dirname(sys.executable))
    assert built.name.endswith("-py3-none-any.whl")
    assert "no C++ compiler: nothing is compiled" in log
    names = zipfile.ZipFile(built).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"presto_kernels", "presto_models"}
    assert "presto_kernels/py.typed" in names
    shipped = {f"presto_kernels/tuned/{file.name}" for file in (ROOT / "presto_kernels/tuned").glob("*.json")}
    assert shipped and shipped <= set(names)
    assert not [name for name in names if name.endswith(".so")]
    models = (ROOT / "presto_models/checkpoints", ROOT / "presto_models/training/presets")
    files = {str(file.relative_to(ROOT)) for folder in models for file in folder.rglob("*.*")}
    assert "presto_models/checkpoints/presto-tiny/diffusion.safetensors" in files <= set(names)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler")
def test_with_a_compiler_and_no_nvcc_one_abi3_library_serves_every_python(tmp_path):
    built, log = wheel(tmp_path, PRESTO_CUDA="0", PRESTO_BUILD="1", PRESTO_OPTIMIZE="-O0")
    assert "-cp311-abi3-" in built.name
    assert "no nvcc: CPU only" in log
    names = zipfile.ZipFile(built).namelist()
    assert [name for name in names if name.endswith(".so")] == ["presto_kernels/_C.abi3.so"]
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"presto_kernels", "presto_models"}


def test_cuda_that_is_asked_for_and_not_there_is_an_error(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH")}
    environment |= {"PRESTO_CUDA": "1", "PATH": os.path.dirname(sys.executable)}
    code = "import runpy, sys; sys.argv = ['setup.py', '--version']; m = runpy.run_path('setup.py'); m['cuda_home']()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "PRESTO_CUDA=1, but no nvcc was found" in done.stderr
