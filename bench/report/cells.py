"""Cells that many tables have: times and ratios with their intervals, in the tone of a gain or a loss."""

from __future__ import annotations

from typing import Any

from bench import show
from bench.names import is_ours
from bench.report.blocks import BAD, GOOD, QUIET, Cell
from bench.report.source import interval, number, text
from bench.results import IDENTITY, Row

UNSURE = "~"
MEMORY_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def ms(fields: Any, name: str = "ms_p50") -> Cell:
    """A time with its interval, such as "16.4 (16.1 to 16.9)"."""
    return Cell(_with_interval(fields, name, show.number))


def plain(fields: Any, name: str) -> Cell:
    return Cell(show.number(number(fields, name)))


def percent(fields: Any, name: str) -> Cell:
    return Cell(show.percent(number(fields, name)))


def ratio(fields: Any, name: str) -> Cell:
    """ "1.29x (1.27 to 1.34)": a gain or a loss; after a ~ where the interval holds 1 or is wider than the difference.

    Without an interval, or where the name does not say which side is ours, it is neither.
    """
    value, ends = number(fields, name), interval(fields, name)
    if value is None:
        return Cell(None)
    shown = _with_interval(fields, name, lambda each: f"{each:.2f}" if each < 10 else show.number(each))
    shown = (shown or "").replace(" (", "x (", 1) if ends else f"{shown}x"
    if ends is None:
        return Cell(shown)
    if ends[0] <= 1 <= ends[1] or ends[1] - ends[0] > abs(value - 1):
        return Cell(shown if ends == (1, 1) else f"{UNSURE}{shown}", QUIET)
    if (gain_above := _gain_above(name)) is None:
        return Cell(shown)
    return Cell(shown, GOOD if (ends[0] > 1) == gain_above else BAD)


def memory(fields: Any, name: str = "peak_bytes") -> Cell:
    value = number(fields, name)
    if value is None:
        return Cell(None)
    size, unit = next((each for each in MEMORY_UNITS if abs(value) >= each[0]), (1.0, "B"))
    return Cell(f"{show.number(value / size)} {unit}")


def word(fields: Any, name: str) -> str | None:
    return text(fields.get(name))


def label(row: Row, *, without: tuple[str, ...] = ("implementation",)) -> str:
    """What a row measured, in words: its identity but the fields that have columns of their own."""
    parts = [_named(name, row.get(name)) for name in IDENTITY if name not in without]
    return " ".join(part for part in parts if part) or text(row.get("key")) or "-"


def in_use(rows: list[Row], names: dict[str, str]) -> dict[str, str]:
    """The columns (field to title) that at least one row has something in."""
    return {name: title for name, title in names.items() if any(text(row.get(name)) is not None for row in rows)}


def _gain_above(name: str) -> bool | None:
    """Whether a ratio of times of this name is a gain above 1; None where it compares with no baseline."""
    if name in ("over_all_on", "scheduled_over_full"):
        return name == "over_all_on"
    over, _, under = name.removesuffix("_graph").removesuffix("_one").partition("_over_")
    ours = under == "this" or is_ours(under)
    return True if ours and not is_ours(over) and not over.startswith("peak") else None


def _named(name: str, value: Any) -> str | None:
    """A bare number with what it is a number of."""
    share = number({name: value}, name)
    if name == "kept_share" and share is not None:
        return f"{show.percent(share)} kept"
    before, after = {"batch": ("batch ", ""), "latents": ("", " latents"), "step": ("step ", "")}.get(name, ("", ""))
    said = text(value)
    if name == "step" and said == "all":
        return "all steps"
    return None if said is None else f"{before}{said}{after}"


def _with_interval(fields: Any, name: str, shown: Any) -> str | None:
    value, ends = number(fields, name), interval(fields, name)
    if value is None:
        return None
    return shown(value) if ends is None else f"{shown(value)} ({shown(ends[0])} to {shown(ends[1])})"
