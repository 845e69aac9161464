"""What a person sees of an optimisation while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Advance = Callable[[int, Mapping[str, float] | None], None]


@contextmanager
def progress_bar(what: str, steps: int, wanted: bool) -> Iterator[Advance]:
    """``advance(steps made, errors)``: a bar with the errors behind it, on a terminal; elsewhere nothing."""
    if not wanted:
        yield lambda done, errors: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError as error:
        raise ImportError("progress=True needs rich: pip install 'presto-kernels[models]'") from error
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, errors: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[errors]}"), console=console, transient=True) as bar:
        task = bar.add_task(what, total=steps, errors="")

        def advance(done: int, errors: Mapping[str, float] | None) -> None:
            said = "" if errors is None else "  ".join(f"{name} {value:.3g}" for name, value in errors.items())
            bar.update(task, completed=done, errors=said)

        yield advance
