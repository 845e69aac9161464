"""The real classes of stable-audio-tools and Stable Audio 3, or an error that says what to do for them.

What their modules import and their networks do not use (torchaudio and the like) is stood in for while they are
imported, where it is not installed, and is gone afterwards.
"""

import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import sys
import types
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
import torch._dynamo

UNUSED = {"torchaudio", "alias_free_torch", "k_diffusion", "einops_exts"}


CHECKOUT = "PRESTO_STABLE_AUDIO_3"  # the variable that names a checkout of Stable Audio 3


class NotThere(Exception):
    """A package that is not installed, and how it would be."""


@functools.cache
def stable_audio_tools() -> SimpleNamespace:
    """Its modules ``autoencoders``, ``blocks``, ``dit`` and ``transformer``."""
    if importlib.util.find_spec("stable_audio_tools") is None:
        raise NotThere("stable-audio-tools is not installed (pip install --no-deps stable-audio-tools==0.0.19)")
    return _models("stable_audio_tools")


def stable_audio_3() -> SimpleNamespace:
    """The same modules of Stable Audio 3, which no index has: of the checkout that PRESTO_STABLE_AUDIO_3 names."""
    folder = os.environ.get(CHECKOUT, "")
    if not folder or not (Path(folder) / "stable_audio_3" / "models").is_dir():
        raise NotThere(f"{CHECKOUT} names no checkout of github.com/Stability-AI/stable-audio-3")
    return _stable_audio_3(folder)


@functools.cache
def _stable_audio_3(folder: str) -> SimpleNamespace:
    package = types.ModuleType("stable_audio_3")  # its own __init__ wants torchaudio for loading and saving
    package.__path__ = [str(Path(folder) / "stable_audio_3")]
    sys.modules["stable_audio_3"] = package
    return _models("stable_audio_3")


def _models(package: str) -> SimpleNamespace:
    suppress = torch._dynamo.config.suppress_errors
    try:
        with stood_in(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = ("autoencoders", "blocks", "dit", "transformer")
            return SimpleNamespace(**{name: importlib.import_module(f"{package}.models.{name}") for name in names})
    finally:
        torch._dynamo.config.suppress_errors = suppress  # both set it for everybody


@contextlib.contextmanager
def stood_in():
    finder = _StandIns()
    sys.meta_path.append(finder)  # last: what is installed is found before
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.made:
            del sys.modules[name]


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self) -> None:
        self.made: list[str] = []

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in UNUSED:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        self.made.append(spec.name)
        return _StandIn(spec.name)

    def exec_module(self, module):
        pass


class _StandIn(types.ModuleType):
    __path__ = ()  # a package: its submodules are stood in for too

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
