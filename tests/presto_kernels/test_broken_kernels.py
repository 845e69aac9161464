"""The tolerance catches a wrong kernel: the CPU kernels are built once more, each op with one deliberate mistake."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import presto_kernels
from presto_kernels import _library
from presto_kernels.ops.modulation import operators
from presto_kernels.testing.modulation import Case, judge

ROOT = Path(presto_kernels.__file__).parents[1]
MISTAKES = {
    "adaln_modulate: the variance is divided by D - 1": (
        "squares.total() * inverse_d",
        "squares.total() / static_cast<float>(d - 1)",
    ),
    "gated_residual: the gradient of the branch forgets the gate": ("v * load_pair(gate + i)", "v"),
    "gated_residual_adaln: the norm is taken of x instead of x'": ("x = kept;", ""),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _library.has_cpu_kernels, reason=f"no CPU kernels: {_library.error}"),
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler"),
]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Loads the broken library under a namespace of its own and puts its operators in the place of the right ones."""
    tree = tmp_path_factory.mktemp("broken")
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    shutil.copytree(ROOT / "presto_kernels", tree / "presto_kernels", ignore=shutil.ignore_patterns("*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree / name)
    kernels = tree / "csrc/cpu/modulation_kernels.h"
    text = kernels.read_text()
    for right, wrong in MISTAKES.values():
        assert text.count(right) == 1, f"the kernel no longer says {right!r}: choose another mistake"
        text = text.replace(right, wrong)
    kernels.write_text(text)
    for source in (tree / "csrc").glob("*.cpp"):
        source.write_text(source.read_text().replace("(presto_kernels,", "(presto_broken,"))
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    environment = {**os.environ, "PRESTO_CUDA": "0", "PRESTO_BUILD": "1"}
    subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True)
    torch.library.define("presto_broken::seam", operators._FORWARD)
    torch.library.define("presto_broken::seam_backward", operators._BACKWARD)
    torch.ops.load_library(str(tree / "presto_kernels/_C.abi3.so"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "forward_operator", lambda name: torch.ops.presto_broken.seam.default)
        patch.setattr(operators, "backward_operator", lambda name: torch.ops.presto_broken.seam_backward.default)
        yield


@pytest.mark.parametrize(
    "op, result", [("adaln_modulate", "h"), ("gated_residual", "dbranch"), ("gated_residual_adaln", "h")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_mistake_is_caught(broken, op, result, dtype):
    # bf16 cannot see 1/(2 D) in the variance at D = 1024; at D = 16 it can.
    with presto_kernels.use_backend("cpu"):
        outcomes = judge(Case(op, tokens=9, dim=16, dtype=dtype))
    caught = {outcome.name: outcome for outcome in outcomes if not outcome.ok}
    assert result in caught, [str(outcome) for outcome in outcomes]
    if op == "gated_residual_adaln":  # far beyond what the other two mistakes do to h
        assert caught["h"].error > 0.3


def test_nothing_else_is_blamed(broken):
    with presto_kernels.use_backend("cpu"):
        outcomes = judge(Case("gated_residual", tokens=9, dim=16))
    assert {outcome.name for outcome in outcomes if not outcome.ok} == {"dbranch"}
