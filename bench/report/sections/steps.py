"""One step taken apart: each kind of op with its floor and what is above it, the roofline, other devices' floors."""

from __future__ import annotations

from typing import Any

from bench import show
from bench.names import PRESTO, REFERENCE
from bench.report import figures
from bench.report.blocks import Block, Note, Table, without_empty
from bench.report.cells import ms, percent, plain, word
from bench.report.sections import latency, roofline
from bench.report.source import Source, number, text
from bench.results import Row

TOTALS, GAPS = ("sum", "step, unprofiled"), "gaps"


def blocks(source: Source) -> list[Block]:
    kinds = [row for row in source.rows if row.get("kind") is not None]
    sides = {name: [row for row in kinds if row.get("implementation") == name] for name in (PRESTO, REFERENCE)}
    shown = sides[PRESTO] or sides[REFERENCE] or kinds
    parts = [row for row in shown if row.get("kind") not in TOTALS and number(row, "ms_p50") is not None]
    parts.sort(key=lambda row: -(number(row, "ms_p50") or 0))
    gaps = sum(number(row, "gap_ms") or 0.0 for row in parts)
    idle = [parts[0] | {"kind": GAPS, "ms_p50": gaps, "floor_ms": 0.0, "excess_ms": gaps}] if gaps else []
    points = [roofline.point(str(row["kind"]), str(row["kind"]), row) for row in parts]
    return [
        *(by_kind([*parts, *idle]) if parts else []),
        *roofline.roofline(source, [each for each in points if each is not None]),
        *largest_gap([*parts, *idle]),
        *kinds_table(sides, kinds),
        *predicted(source),
        *(latency.waterfall(title, stages) for title, stages in latency.walks(source)),
        *latency.summary_ratios(source),
        *latency.percentiles(source),
    ]


def excess(row: Row) -> float | None:
    """Median less floor, where the file does not say it itself."""
    stated, took, floor = number(row, "excess_ms"), number(row, "ms_p50"), number(row, "floor_ms")
    return stated if stated is not None else None if took is None or floor is None else took - floor


def by_kind(parts: list[Row]) -> list[Block]:
    """A waterfall: of each kind the floor, and behind it what is above the floor."""

    def draw(axes: Any) -> None:
        figures.bars(axes, [str(row["kind"]) for row in parts])
        begun = 0.0
        for index, row in enumerate(parts):
            took, floor = number(row, "ms_p50") or 0.0, number(row, "floor_ms")
            least = min(took, floor or 0.0)
            label = index == 0
            axes.barh(index, least, left=begun, height=0.68, color=figures.FLOOR, label="floor" if label else None)
            above = "above the floor" if label else None
            axes.barh(index, took - least, left=begun + least, height=0.68, color=figures.OURS, label=above)
            begun += took
            figures.number_at(axes, begun, index, took)
        axes.set_xlim(0, begun * 1.16 or 1)
        axes.set_xlabel("ms")
        axes.figure.legend(loc="outside lower center", ncols=2)

    total = sum(number(row, "ms_p50") or 0.0 for row in parts)
    side, step = parts[0].get("implementation"), text(parts[0].get("step"))
    words = ", ".join(
        f"{row['kind']} {show.number(number(row, 'ms_p50'))} ms, floor {show.number(number(row, 'floor_ms')) or '-'}"
        for row in parts
    )
    title = f"Inside step {step or '-'}, {side or '-'}: {show.number(total)} ms"
    return [figures.figure(title, f"Waterfall. {words}.", figures.height_for(len(parts), around=0.95), draw)]


def largest_gap(parts: list[Row]) -> list[Block]:
    known = [(gap, row) for row in parts if (gap := excess(row)) is not None and gap > 0]
    if not known:
        return []
    gap, row = max(known, key=lambda pair: pair[0])
    whole = sum(number(each, "ms_p50") or 0.0 for each in parts)
    share = f", {100 * gap / whole:.1f} % of the step" if whole else ""
    return [Note(f"Furthest from its floor: {row['kind']}, {show.number(gap)} ms above it{share}.", short=True)]


def kinds_table(sides: dict[str, list[Row]], kinds: list[Row]) -> list[Block]:
    """A line a kind: both sides, floor, what is above it, launches, gaps, rates."""
    if not kinds:
        return []
    of_side = {name: {(row.get("step"), row.get("kind")): row for row in rows} for name, rows in sides.items()}
    cells = []
    for step, kind in dict.fromkeys((row.get("step"), row.get("kind")) for row in kinds):
        ours, plain_row = of_side[PRESTO].get((step, kind), {}), of_side[REFERENCE].get((step, kind), {})
        took, before = number(ours, "ms_p50"), number(plain_row, "ms_p50")
        cells.append(
            (
                text(kind),
                ms(plain_row),
                ms(ours),
                show.times(before / took) if took and before is not None else None,
                plain(ours, "floor_ms"),
                show.number(excess(ours)),
                percent(ours, "share_of_ceiling"),
                word(ours, "launches"),
                plain(ours, "gap_ms"),
                plain(ours, "gbs"),
                plain(ours, "tflops"),
            )
        )
    above = ("floor ms", "above it ms", "of ceiling", "launches", "gaps ms", "GB/s", "TFLOP/s")
    columns = ("kind of op", "reference ms", "presto ms", "ratio", *above)
    return [without_empty(Table("Kinds of op", columns, cells, short=True))]


def predicted(source: Source) -> list[Block]:
    """Floors of devices given by their published rates."""
    found = source.summary.get("predicted")
    if not isinstance(found, dict) or not found:
        return []
    rows: list[dict[str, Any]] = []
    for device, each in found.items():
        figures_of = _dict(each)
        alike = {name: value for name, value in figures_of.items() if not isinstance(value, dict) and name != "basis"}
        rates = _dict(figures_of.get("rates")) or {"": {}}
        rows += [{"device": device, "products": rate, **_dict(rates[rate]), **alike} for rate in rates]
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[text(row.get(name)) for name in names] for row in rows]
    words = [name.replace("_", " ") for name in names]
    return [without_empty(Table("Predicted from datasheets, not measured", words, cells, left=2, words=("source",)))]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
