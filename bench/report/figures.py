"""Plots by matplotlib as SVG inside the page, in colours that follow the reader's light or dark scheme.

matplotlib draws in stand-in colours; in the SVG they become CSS variables of style.css.  Text stays text: it takes the
page's font, can be searched, and is escaped by matplotlib.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench import show
from bench.names import COMPILE, GRAPH, REFERENCE, SCHEDULED, is_ours
from bench.report.blocks import Figure

WIDTH = 4.3  # inches, as wide as a phone's page: text is as large there as here
_NAMES = (
    "ink",
    "muted",
    "grid",
    "paper",
    "ours",
    "plain",
    "compiled",
    "scheduled",
    "good",
    "bad",
    "c1",
    "c2",
    "c3",
    "c4",
)
COLORS = {name: f"#0{index:x}e1d7" for index, name in enumerate(_NAMES)}
INK, MUTED, GRID, PAPER = (COLORS[name] for name in ("ink", "muted", "grid", "paper"))
OURS, FLOOR = COLORS["ours"], COLORS["muted"]
SERIES = tuple(COLORS[name] for name in ("ours", "compiled", "scheduled", "c1", "c2", "c3", "c4", "plain"))

SMALL = 9
LONGEST = 32  # letters of a name beside a bar
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "presto",
    "text.parse_math": False,  # a name with $ in it is a name
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
}


def colors_of(implementations: Iterable[str]) -> dict[str, str]:
    """A colour each; those that everybody knows have the same one in every plot."""
    known = {REFERENCE: "plain", "eager": "plain", COMPILE: "compiled", SCHEDULED: "scheduled", "copy": "muted"}
    others = itertools.cycle(("c1", "c2", "c3", "c4"))
    found: dict[str, str] = {}
    for name in implementations:
        base = name.removesuffix(GRAPH)
        ours = is_ours(base) and OURS not in found.values()
        found[name] = COLORS[known[base]] if base in known else OURS if ours else COLORS[next(others)]
    return found


def figure(title: str, alt: str, height: float, draw: Callable[[Any], None]) -> Figure:
    """What `draw` puts on a pair of axes.

    Raises:
        ImportError: naming the extra, where matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise ImportError("bench report needs matplotlib: pip install 'presto-kernels[bench]'") from error
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        draw(canvas.subplots())
        written = io.StringIO()
        canvas.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return Figure(title, alt, _inline(written.getvalue()))


def bars(axes: Any, names: Sequence[str]) -> None:
    """Names down the left side, the first at the top; the grid along the values alone."""
    axes.set_yticks(
        range(len(names)), [name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..." for name in names]
    )
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.14)
    axes.locator_params(axis="x", nbins=5)


def log_axis(axes: Any, which: str, values: Sequence[float] = ()) -> None:
    """Logarithmic in "x" or "y", with plain numbers at 1, 2 and 5, or at `values`."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    low, high = sorted(axis.get_view_interval())
    steps = (1.0,) if low > 0 and high / low > 200 else (1.0, 2.0, 5.0)
    axis.set_major_locator(FixedLocator(list(values)) if values else LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def number_at(axes: Any, x: float, y: float, value: float, *, unit: str = "") -> None:
    """The value behind the end of a bar."""
    axes.annotate(
        f"{show.number(value)}{unit}", (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=SMALL
    )


def height_for(count: int, *, each: float = 0.25, around: float = 0.7) -> float:
    """Inches for so many bars."""
    return around + each * max(count, 1)


def _inline(svg: str) -> str:
    """The drawing alone: no XML header, no metadata, no namespaces, no style of its own, CSS variables for colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r"<defs>\s*</defs>", "", svg)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r'<g id="[^"]*">', "<g>", body.replace("xlink:href=", "href="))
    body = re.sub(r'font-family:[^;"<]*;?', "", body)
    for name, color in COLORS.items():
        body = body.replace(color, f"var(--{name})")
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg {box[0] if box else ""} role="img">{body.strip()}'
