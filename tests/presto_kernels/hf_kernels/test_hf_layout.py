"""What kernel-builder is given, and the rules of the Hub for a kernel's Python."""

import ast
import inspect
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from torch import nn

import presto_kernels
from presto_kernels import layers

ROOT = Path(presto_kernels.__file__).parents[1]
LAYERS = [
    name for name, value in vars(layers).items() if inspect.isclass(value) and value.__module__ == layers.__name__
]


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_the_build_file_names_every_source_once_and_nothing_else(hf_kernel, project, backend):
    config = tomllib.loads((project / "build.toml").read_text())
    assert config["general"]["name"].replace("-", "_") == "presto_kernels"
    assert {"name", "version", "edition", "license", "backends"} <= set(config["general"])
    assert all((project / file).exists() for file in config["torch"]["src"])
    sections = [kernel for kernel in config["kernel"].values() if kernel["backend"] == backend]
    named = [file for kernel in sections for file in kernel["src"]]
    assert len(named) == len(set(named))
    found = {str(f.relative_to(project)) for f in (project / "csrc").rglob("*") if f.is_file()}
    assert set(named) == {f for f in found if backend == "cuda" or "csrc/cuda/" not in f}
    # What is compiled is what stands in csrc/ here, the vector kernels once per instruction set.
    ours = {str(f.relative_to(ROOT)) for f in (ROOT / "csrc").rglob("*.cpp")}
    isa = {f for f in ours if f.endswith("_isa.cpp")}
    copies = {f.replace("csrc/cpu/", f"csrc/cpu/{name}/") for f in isa for name in hf_kernel.INSTRUCTION_SETS}
    assert isa and {f for f in named if f.endswith(".cpp")} == ours - isa | copies


def test_kernel_builders_own_reader_takes_the_build_file(kernels, project):
    from kernels._rust import Build

    assert [str(backend) for backend in Build.open(project).general.backends] == ["cpu", "cuda"]


def test_a_pattern_that_finds_nothing_is_an_error(hf_kernel, tmp_path):
    with pytest.raises(SystemExit, match=r"csrc/\*\.cpp"):
        hf_kernel.expand('src = ["csrc/*.cpp"]', tmp_path)


def test_the_instruction_sets_are_those_of_setup_py(hf_kernel, project):
    tree = ast.parse((ROOT / "setup.py").read_text())
    names = ("_AVX2", "_AVX512", "ISA_FLAGS")
    wanted = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in names]
    setup = {"X86": True}
    exec(compile(ast.Module(wanted, []), "setup.py", "exec"), setup)
    assert tuple(setup["ISA_FLAGS"]) == hf_kernel.INSTRUCTION_SETS
    kernels = tomllib.loads((project / "build.toml").read_text())["kernel"]
    for isa, flags in setup["ISA_FLAGS"].items():
        for backend in ("cpu", "cuda"):
            ours = kernels[f"presto_{backend}_{isa}"]["cxx-flags"]
            assert [flag for flag in ours if flag.startswith("-m")] == flags
            assert f"-DPRESTO_ISA={isa}" in ours


# The Python of a kernel, by the rules of the Hub.


def test_python_imports_itself_relatively_and_otherwise_only_what_is_allowed(repository):
    allowed = sys.stdlib_module_names | {"torch", "triton"}  # triton: comes with torch for GPUs, as in their examples
    for file in (repository / "build/torch-cpu").rglob("*.py"):
        tree = ast.parse(file.read_text(), feature_version=(3, 9))  # also: the syntax is old enough
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.append(node.module or "")
            assert {module.split(".")[0] for module in modules} <= allowed, (file, modules)


def test_nothing_but_the_ops_module_says_the_namespace(repository):
    for file in (repository / "build/torch-cpu").rglob("*.py"):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value = ast.Constant(None)  # a docstring may
        code = ast.unparse(tree)
        assert "presto_kernels::" not in code and "ops.presto_kernels" not in code, file


def test_relative_imports_are_as_deep_as_the_module(hf_kernel):
    text = "from presto_kernels import a\n    from presto_kernels.ops.b import c\nfrom presto_kernels_x import d\n"
    assert hf_kernel.relative_imports(text, 0) == (
        "from . import a\n    from .ops.b import c\nfrom presto_kernels_x import d\n"
    )
    assert hf_kernel.relative_imports(text, 2).startswith("from ... import a\n    from ...ops.b import c\n")


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_metadata_is_read_and_its_digest_is_right(kernels, repository, backend):
    from kernels._rust import Digest, DigestAlgorithm, Metadata

    folder = repository / f"build/torch-{backend}"
    metadata = Metadata.read_from_file(folder / "metadata.json")
    assert metadata.id == f"_presto_kernels_{backend}_test_python" and metadata.id.isidentifier()
    assert metadata.name.python_name == "presto_kernels"
    assert json.loads((folder / "metadata.json").read_text())["backend"] == {"type": backend}
    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, folder))
    (folder / "extra.py").write_text("")
    with pytest.raises(Exception, match=r"extra\.py"):
        metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, folder))
    (folder / "extra.py").unlink()


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_a_forward_and_its_two_flags_alone(name):
    layer = getattr(layers, name)
    assert issubclass(layer, nn.Module) and layer.__init__ is nn.Module.__init__
    own = {member for member in vars(layer) if not member.startswith("__")}
    assert own == {"forward", "has_backward", "can_torch_compile"}
    assert layer.has_backward is True and layer.can_torch_compile is True


def test_the_page_lists_every_layer():
    table = (ROOT / "docs/hf-kernels.md").read_text().split("## The layers")[1].split("##")[0]
    assert set(
        re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    ) == set(LAYERS)
