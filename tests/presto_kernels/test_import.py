"""The package imports and works with PyTorch alone, and says nothing."""

import subprocess
import sys
from pathlib import Path

import presto_kernels

ROOT = Path(presto_kernels.__file__).parents[1]

_HIDDEN = """
import builtins, importlib.util, pathlib, sys

hidden = ("triton", "flash_attn", "einops", "rich")
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in hidden else find_spec(name, *rest)
import torch
load = builtins.__import__
def guarded(name, *rest, **more):
    if name.split(".")[0] in hidden and "presto" in (rest[0] or {}).get("__name__", ""):
        raise ModuleNotFoundError(name)
    return load(name, *rest, **more)
builtins.__import__ = guarded
glob = pathlib.Path.glob
pathlib.Path.glob = lambda self, pattern, **more: iter(()) if pattern.startswith("_C") else glob(self, pattern, **more)
"""


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], cwd=ROOT, capture_output=True, text=True
    )


def test_cold_import_with_triton_and_the_library_hidden_and_the_reference_used():
    done = python(
        _HIDDEN
        + """
import presto_kernels
assert presto_kernels.available_backends()["adaln_modulate"] == ("reference",)
x = torch.randn(2, 5, 8, requires_grad=True)
scale = torch.randn(2, 8)
x_new, h = presto_kernels.gated_residual_adaln(x, x * 2, None, scale, None)
torch.testing.assert_close(x_new, 3 * x)
torch.testing.assert_close(h, torch.nn.functional.layer_norm(3 * x, (8,), eps=1e-6) * (1 + scale[:, None]))
h.sum().backward()
assert x.grad is not None
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_import_is_silent_and_leaves_triton_alone():
    done = python("import sys, presto_kernels; assert 'triton' not in sys.modules")
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_no_public_function_shares_a_name_with_a_submodule():
    modules = {path.stem for path in (ROOT / "presto_kernels").iterdir() if path.suffix == ".py" or path.is_dir()}
    functions = {name for name in presto_kernels.__all__ if callable(getattr(presto_kernels, name))}
    assert not modules & functions
