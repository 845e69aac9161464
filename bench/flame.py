"""A flame view of recorded steps as one file that any browser opens: nested ranges and operators from left to right by
time, coloured by kind of op; on CUDA the kernels below. A name and its time show when the mouse rests on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from bench import show
from bench.op_profile import Profile, kind_of, step_of
from bench.trace import KERNEL, LAUNCH, RANGE, Span

FORMATS = (".svg", ".html")
COLORS = {
    "self-attention": "#d1495b",
    "cross-attention": "#edae49",
    "qkv": "#1b4965",
    "out, cross q, cross out": "#3a7ca5",
    "mlp up": "#5fa8d3",
    "mlp down": "#8ecae6",
    "proj in, out": "#577590",
    "qk norm, rotary": "#43aa8b",
    "swiglu": "#90be6d",
    "seams": "#9d6b9e",
}
"""Kind of op → its colour in every picture: products blue, attention warm, the rest green and violet."""
OTHER = "#c9c9c9"

WIDTH, ROW, LEFT, FONT = 1600, 18, 10, 11
NARROW = 0.15
"""Pixels below which a span is not drawn."""
CHARACTER = 6.0


def page(profiles: Mapping[str, Profile], title: str, *, html: bool) -> str:
    """The picture as SVG text, or as an HTML page around it.

    profiles: name → one recorded call; they stand one below the other on the same scale of time.
    """
    picture = svg(profiles, title)
    if not html:
        return picture
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title></head>\n"
        f'<body style="margin:0;overflow-x:auto">\n{picture}</body></html>\n'
    )


def svg(profiles: Mapping[str, Profile], title: str) -> str:
    """:func:`page`'s picture."""
    longest = max(step_of(profile.spans).ms for profile in profiles.values())
    scale = (WIDTH - 2 * LEFT) / longest
    parts: list[str] = []
    top = 62
    dropped = 0
    for name, profile in profiles.items():
        step = step_of(profile.spans)
        parts.append(_text(LEFT, top + 13, f"{name}: {show.number(step.ms)} ms under the profiler", bold=True))
        top += ROW + 2
        lanes = _lanes(profile.spans)
        for label, rows in lanes.items():
            if len(lanes) > 1:
                parts.append(_text(LEFT, top + 13, label))
                top += ROW
            for row, span in rows:
                x, width = LEFT + scale * (span.start - step.start), scale * span.ms
                if width < NARROW:
                    dropped += 1
                    continue
                parts.append(_box(span, x, top + row * ROW, width, step.ms))
            top += ROW * (1 + max((row for row, _ in rows), default=0)) + 6
        top += 14
    top += _scale(parts, top, longest, scale)
    if dropped:
        parts.append(_text(LEFT, top + 12, f"{dropped} spans are too short to be drawn at this width"))
        top += ROW
    head = [_text(LEFT, 20, title, bold=True), *_legend(40)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + 10}" viewBox="0 0 {WIDTH} {top + 10}" '
        f'font-family="system-ui, sans-serif" font-size="{FONT}">\n'
        "<style>rect:hover{stroke:#000;stroke-width:1.5}text{pointer-events:none}</style>\n"
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(head + parts) + "\n</svg>\n"
    )


def _lanes(spans: list[Span]) -> dict[str, list[tuple[int, Span]]]:
    """Track → its spans with the row each is drawn in: how deep it lies in others; kernels in one row a stream."""
    lanes: dict[str, list[tuple[int, Span]]] = {}
    depth: dict[Span, int] = {}
    for span in spans:
        if span.what == KERNEL:
            lanes.setdefault(span.track, []).append((0, span))
            continue
        depth[span] = 0 if span.parent is None else depth[span.parent] + 1
        lanes.setdefault(span.track, []).append((depth[span], span))
    return lanes


def _box(span: Span, x: float, y: float, width: float, whole: float) -> str:
    """A span, and its name where it fits: of a range the last part, as the others stand above it."""
    name = span.name.rsplit("/", 1)[-1] if span.what == RANGE else span.name.removeprefix("aten::")
    color = OTHER if span.what in (RANGE, LAUNCH) else COLORS.get(kind_of(span), OTHER)
    fill = "#ededed" if span.what == RANGE else color
    hint = f"{span.name}\n{show.number(span.ms)} ms, {span.ms / whole:.1%} of the step"
    if span.what not in (RANGE, LAUNCH):
        hint += f"\n{kind_of(span)}"
    stroke = ' stroke="#fff" stroke-width="0.4"' if width > 2 else ""
    box = (
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW - 1}" fill="{fill}"{stroke}>'
        f"<title>{escape(hint)}</title></rect>"
    )
    fits = int((width - 4) / CHARACTER)
    if fits < 3:
        return box
    shown = name if len(name) <= fits else name[: fits - 1] + "…"
    return box + _text(x + 2, y + 13, shown, light=span.what != RANGE and _dark(fill))


def _text(x: float, y: float, text: str, *, bold: bool = False, light: bool = False) -> str:
    style = (' font-weight="bold"' if bold else "") + (' fill="#fff"' if light else "")
    return f'<text x="{x:.2f}" y="{y:.1f}"{style}>{escape(text)}</text>'


def _legend(y: float) -> list[str]:
    parts, x = [], float(LEFT)
    for kind, color in (*COLORS.items(), ("a room", "#ededed")):
        parts.append(f'<rect x="{x}" y="{y - 9}" width="11" height="11" fill="{color}"/>' + _text(x + 15, y, kind))
        x += 15 + CHARACTER * len(kind) + 18
    return parts


def _scale(parts: list[str], y: float, longest: float, scale: float) -> int:
    """A ruler in ms below everything; returns its height."""
    tick = 10.0 ** len(str(int(longest))) / 10
    while longest / tick < 5:
        tick /= 2
    at = 0.0
    while at <= longest:
        x = LEFT + scale * at
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 5}" stroke="#000"/>')
        if x < WIDTH - 60:
            parts.append(_text(x + 2, y + 14, f"{at:g} ms"))
        at += tick
    return 24


def _dark(color: str) -> bool:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return 0.3 * red + 0.6 * green + 0.1 * blue < 140
