"""What the package shows, and what it may see."""

import ast
import inspect
import pkgutil
from pathlib import Path

import presto_kernels
import presto_kernels.oobleck
import presto_models
import presto_models.distill


def sources():
    return sorted(Path(presto_models.__file__).parent.rglob("*.py"))


PUBLIC = {package.__name__: set(package.__all__) for package in (presto_kernels, presto_kernels.oobleck)}


def test_everything_promised_is_there_and_documented():
    for package in (presto_models, presto_models.distill, presto_kernels.oobleck):
        for name in package.__all__:
            assert inspect.getdoc(getattr(package, name)), name


def test_no_public_function_shares_a_name_with_a_submodule():
    modules = {info.name.rsplit(".", 1)[-1] for info in pkgutil.walk_packages(presto_models.__path__, "presto_models.")}
    public = set(presto_models.__all__) | set(presto_models.diffusion.__all__) | set(presto_models.distill.__all__)
    assert "samplers" in modules and not modules & public


def test_it_imports_only_the_public_api_of_presto_kernels():
    seen = set()
    for source in sources():
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "presto_kernels" for alias in node.names), source
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "presto_kernels":
                assert node.module in PUBLIC, source
                seen.add(node.module)
                assert {alias.name for alias in node.names} <= PUBLIC[node.module], source
    assert seen == set(PUBLIC)
