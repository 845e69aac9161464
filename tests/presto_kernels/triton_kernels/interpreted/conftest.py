"""Kernels that are wrong on purpose."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture
def mutant(request, tmp_path):
    """mutant(right, wrong): the kernels of the test module's family once more, with one piece of code replaced."""

    def make(right: str, wrong: str):
        source = Path(request.module.triton_kernels.__file__).with_name("triton_jit.py").read_text()
        assert source.count(right) == 1, f"the kernels have changed: {right!r} occurs {source.count(right)} times"
        path = tmp_path / "mutant.py"
        path.write_text(source.replace(right, wrong))
        spec = importlib.util.spec_from_file_location("mutant", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return make
