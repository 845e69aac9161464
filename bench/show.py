"""What people look at: tables of at most 100 columns, and progress on anything slow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.measure import Ratio

WIDTH = 100
UNSURE = "~"
UNSURE_MEANS = "~ uncertain: the 95 % interval holds 1, or is wider than the difference from 1"
BUSY_LOAD = 0.5  # load average from which something else is said to run
console = Console(width=WIDTH, highlight=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1, wrap: int = 0) -> Table:
    """A table whose first `left` columns are names (left-aligned) and the others numbers; None shows as a dash.

    The first `wrap` columns may break into lines where the table would be wider than the page.  Where a ratio is
    uncertain (:func:`ratio`), a line below says what that means.
    """
    made = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False, padding=(0, 1))
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index < left else "right", no_wrap=index >= wrap)
    for row in rows:
        made.add_row(*["-" if cell is None else str(cell) for cell in row])
    if any(str(cell).startswith(UNSURE) for row in rows for cell in row):
        made.caption, made.caption_justify = UNSURE_MEANS, "left"
    return made


def number(value: float | None) -> str | None:
    """Three significant digits, at most four decimals: 1380, 12.4, 0.213, 0.0021."""
    if value is None:
        return None
    magnitude = int(f"{abs(value):e}".split("e")[1])
    return f"{value:.{min(4, max(0, 2 - magnitude))}f}"


def percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.0f} %"


def times(ratio: float | None) -> str | None:
    """1.05x, 87.4x, 367x: a column that a noisy machine does not make wider than the page."""
    return None if ratio is None else f"{ratio:.2f}x" if ratio < 10 else f"{number(ratio)}x"


def ratio(figures: Mapping[str, Any], name: str) -> str | None:
    """`figures[name]` as 1.05x, after a ~ where its 95 % interval, `figures[name_interval]`, makes it uncertain."""
    shown = times(figures.get(name))
    return shown if shown is None or is_clear(figures, name) else f"{UNSURE}{shown}"


def is_clear(figures: Mapping[str, Any], name: str) -> bool:
    """:attr:`bench.measure.Ratio.clear` of a ratio in a row or summary; one without an interval is not doubted."""
    if f"{name}_interval" not in figures:
        return True
    return Ratio(figures[name], *figures[f"{name}_interval"], rounds=0).clear


def machine_line(meta: dict[str, Any]) -> str:
    """The machine, its measured ceilings, and a warning where others are using it."""
    load = meta["load_average"]
    busy = f"\nload {load}: something else runs here; expect noise" if load > BUSY_LOAD else ""
    products = ", ".join(f"{name} {number(rate)}" for name, rate in meta["ceilings"]["matmul_tflops"].items())
    return (
        f"{meta['device']} · torch {meta['torch']} · copy {number(meta['ceilings']['copy_gbs'])} GB/s (read + write)"
        f" · matmul TFLOP/s: {products}{busy}"
    )


def refused(refusals: Sequence[dict[str, Any]]) -> None:
    """A line for each implementation that was not timed."""
    for refusal in refusals:
        what = ", ".join(str(value) for key, value in refusal.items() if key != "reason")
        console.print("refused", style="bold red", end=" ")
        console.print(f"{what}: {refusal['reason']}", markup=False)


def telemetry(meta: dict[str, Any]) -> None:
    """What the machine did meanwhile, in a line, and what marks the result."""
    told = meta["telemetry"]
    parts = [told["reason"]] if "reason" in told else []
    for name, unit in (("sm_mhz", "MHz SM"), ("cpu_mhz", "MHz")):
        if told.get(name) and "median" in told[name]:
            parts.append(f"{told[name]['median']:.0f} {unit}")
    if told.get("power_w") and told["power_w"]["mean"] is not None:
        parts.append(f"{told['power_w']['mean']:.0f} of {number(told['power_w']['limit'])} W")
    if told.get("temperature_c"):
        parts.append(f"at most {told['temperature_c']['max']} °C")
    if told["energy_j"] is not None:
        parts.append(f"{number(told['energy_j'])} J")
    elif told.get("no_energy"):
        parts.append(told["no_energy"])
    console.print(f"while timed ({told['source'] or 'no telemetry'}): {', '.join(parts)}", markup=False, style="dim")
    for mark in meta["marks"]:
        console.print(mark, markup=False, style="bold red")


@contextmanager
def stage(label: str) -> Iterator[Callable[[], float]]:
    """Shows that something slow is going on and how long it took; yields a function that tells the seconds so far."""
    started = time.perf_counter()
    if console.is_terminal:
        with console.status(f"{label} ..."):
            yield lambda: time.perf_counter() - started
    else:
        console.print(f"{label} ...")
        yield lambda: time.perf_counter() - started
    console.print(f"{label}: {time.perf_counter() - started:.1f} s", style="dim")


@contextmanager
def rounds(label: str) -> Iterator[Callable[[float], None]]:
    """A bar for the rounds of a measurement; where there is no terminal, a line every ten seconds."""
    if not console.is_terminal:
        last = time.perf_counter()

        def line(share: float) -> None:
            nonlocal last
            if time.perf_counter() - last > 10:
                last = time.perf_counter()
                console.print(f"{label}: {100 * min(share, 1.0):.0f} %", style="dim")

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=1.0)
        yield lambda share: progress.update(task, completed=min(share, 1.0))  # the last round may run over
