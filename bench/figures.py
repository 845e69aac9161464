"""Plots that a command draws when asked: the path is checked before anything is measured, a file is whole or absent."""

from __future__ import annotations

from typing import Any

from bench.cli import BadOption
from presto_models.files import written_beside
from presto_models.plots import FORMATS


def check_path(path: str | None, flag: str = "--plot") -> None:
    """BadOption where a picture cannot be drawn here or is of no known kind; nothing to do for None."""
    if path is None:
        return
    if not path.lower().endswith(FORMATS):
        raise BadOption(f"{flag}: must end in {', '.join(FORMATS)}; got {path!r}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise BadOption(f"{flag}: needs matplotlib: pip install 'presto-kernels[bench]'") from error


def save(figure: Any, path: str) -> None:
    """A matplotlib figure to a file, beside and renamed."""
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=120)
