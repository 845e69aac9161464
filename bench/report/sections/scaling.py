"""Cost against length, batch, depth or steps: log-log, with the fitted power law."""

from __future__ import annotations

from typing import Any

from bench.report import figures
from bench.report.blocks import Block, Cell, Table, without_empty
from bench.report.cells import ms, ratio, word
from bench.report.source import Source, interval, number, text
from bench.results import Row


def blocks(source: Source) -> list[Block]:
    axes = list(dict.fromkeys(str(row["axis"]) for row in source.rows if row.get("axis") is not None))
    found: list[Block] = []
    for name in axes:
        rows = [row for row in source.rows if row.get("axis") == name]
        found += plot(source, name, rows)
    return [*found, *fits(source, axes), *table(source)]


def plot(source: Source, axis: str, rows: list[Row]) -> list[Block]:
    """A line an implementation, and dashed its power law."""
    of_it: dict[str, list[tuple[float, float, tuple[float, float] | None]]] = {}
    for row in rows:
        value, took = number(row, "value"), number(row, "ms_p50")
        if value and value > 0 and took and took > 0:
            name = text(row.get("implementation")) or "-"
            of_it.setdefault(name, []).append((value, took, interval(row, "ms_p50")))
    if not of_it:
        return []
    floor = {number(row, "value"): number(row, "floor_ms") for row in rows if number(row, "floor_ms")}
    values = sorted({value for points in of_it.values() for value, _, _ in points})

    def draw(axes: Any) -> None:
        for (name, points), color in zip(of_it.items(), figures.colors_of(of_it).values(), strict=True):
            points.sort()
            x, y = [each[0] for each in points], [each[1] for each in points]
            low = [max(0.0, took - ends[0]) if ends else 0.0 for _, took, ends in points]
            high = [max(0.0, ends[1] - took) if ends else 0.0 for _, took, ends in points]
            fit = _fits(source, axis).get(name)
            power, start = number(fit, "exponent"), number(fit, "coefficient")
            label = name if power is None else f"{name}: exponent {power:.2f}"
            axes.errorbar(x, y, yerr=[low, high], color=color, marker="o", markersize=3.5, capsize=2, label=label)
            if power is not None and start:
                axes.plot(x, [start * each**power for each in x], color=color, linestyle=(0, (2, 2)), linewidth=1)
        if floor:
            axes.plot(
                *zip(*sorted(floor.items()), strict=True), color=figures.MUTED, linewidth=1, label="counted floor"
            )
        figures.log_axis(axes, "x", values if len(values) <= 8 else ())
        figures.log_axis(axes, "y")
        axes.set(xlabel=axis, ylabel="ms")
        axes.figure.legend(loc="outside lower center", ncols=1)

    words = "; ".join(
        f"{name} from {min(points)[1]:.3g} ms at {min(points)[0]:g} to {max(points)[1]:.3g} ms at {max(points)[0]:g}"
        for name, points in of_it.items()
    )
    return [figures.figure(f"Time against {axis}", f"Log-log. {words}.", 3.1 + 0.17 * len(of_it), draw)]


def fits(source: Source, axes: list[str]) -> list[Block]:
    rows = []
    for axis in axes:
        for name, fit in _fits(source, axis).items():
            if isinstance(fit, dict):
                share = number(fit, "fixed_share")
                fixed = None if share is None else f"{100 * share:.0f} %"
                powers = _figure(fit, "exponent"), _figure(_fits(source, axis), "floor_exponent")
                rows.append((axis, str(name), *powers, ms(fit, "fixed_ms"), fixed, _deviation(fit)))
    columns = ("axis", "implementation", "exponent (95 %)", "the floor's", "fixed ms", "fixed share", "off the law")
    title = "Fits: ms = c · value^exponent, and ms = fixed + b · value"
    return [without_empty(Table(title, columns, rows, left=2, short=True))] if rows else []


def table(source: Source) -> list[Block]:
    rows = [
        (text(row.get("axis")), text(row.get("value")), word(row, "implementation"), ms(row), _over(row))
        for row in source.rows
        if number(row, "ms_p50") is not None
    ]
    columns = ("axis", "value", "implementation", "p50 ms", "reference / it")
    return [Table("Times", columns, rows, left=3, folded=len(rows) > 30)] if rows else []


def _over(row: Row) -> Cell:
    return ratio(row, "reference_over_this")


def _fits(source: Source, axis: str) -> dict[str, Any]:
    """Of one axis by implementation; beside them stands what is common to all."""
    axes = source.summary.get("axes")
    found = (axes if isinstance(axes, dict) else source.summary).get(axis)
    return found if isinstance(found, dict) else {}


def _figure(fit: dict[str, Any], name: str) -> str | None:
    value, ends = number(fit, name), interval(fit, name)
    if value is None:
        return None
    return f"{value:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")


def _deviation(fit: dict[str, Any]) -> str | None:
    value = number(fit, "largest_deviation")
    return None if value is None else f"{100 * value:+.1f} %"
