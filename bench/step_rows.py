"""What `bench steps` says of one step: a row a kind of op, the step's sums, its floor, and where it is furthest off."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from bench import counting_dit, show
from bench.counting import Count
from bench.names import GRAPH, PRESTO, REFERENCE
from bench.op_profile import UNMATCHED, Part, Profile
from bench.results import Row, sample_fields
from bench.roofline import Ceiling

SUM, WHOLE, GAPS = "sum", "step, unprofiled", "gaps"
SHOWN = (PRESTO + GRAPH, PRESTO, REFERENCE)
"""Which implementation the floor is held against: what the product does, as far as it was profiled."""


def kind_rows(
    name: str,
    step: int,
    profiles: Sequence[Profile],
    counts: Mapping[str, Count],
    ceiling: Ceiling,
    whole_ms: float | None,
) -> list[Row]:
    """One side's rows: a kind of op each, their sum, and the step as it was timed without the profiler.

    ms_p50 and gap_ms are medians over the profiles.  A kind's floor is counted, so it is the same for every side.
    """
    kinds = list(counts) if not _unmatched(profiles) else []
    rows = []
    for kind in kinds:
        parts = [profile.kinds.get(kind, Part()) for profile in profiles]
        count = counts[kind]
        times = np.array([part.ms for part in parts])
        rows.append(
            {
                "step": step,
                "kind": kind,
                "implementation": name,
                **sample_fields(times),
                "launches": round(statistics.median(part.launches for part in parts)),
                "gap_ms": statistics.median(part.gap_ms for part in parts),
                **_against(count.bytes, count.flops, ceiling.floor_ms({kind: count}), float(np.median(times))),
                "ops": _ops(parts),
            }
        )
    sums = [[sum(getattr(part, of) for part in p.kinds.values()) for p in profiles] for of in ("ms", "gap_ms")]
    launches = statistics.median(sum(part.launches for part in p.kinds.values()) for p in profiles)
    total_bytes, flops = sum(c.bytes for c in counts.values()), sum(c.flops for c in counts.values())
    floor = ceiling.floor_ms(counts)
    # The sum of the medians, so that the table adds up; a median of the sums where there are no kinds.
    ms = sum(row["ms_p50"] for row in rows) if rows else statistics.median(sums[0])
    gap_ms = sum(row["gap_ms"] for row in rows) if rows else statistics.median(sums[1])
    common = {"step": step, "implementation": name, "launches": round(launches), "gap_ms": gap_ms}
    rows.append(common | {"kind": SUM, "ms_p50": ms} | _against(total_bytes, flops, floor, ms))
    if not kinds:
        rows[-1]["ops"] = _ops([part for profile in profiles for part in profile.kinds.values()])
    if whole_ms is not None:
        common = {"step": step, "kind": WHOLE, "implementation": name, "ms_p50": whole_ms}
        rows.append(common | _against(total_bytes, flops, floor, whole_ms))
    return rows


def floor_summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The step's floor and time, and the kind (or the gaps) with the most time above its floor.

    `largest_gap.step_share_at_floor`: which share of the profile, own times and gaps, would be left if that kind ran
    at its floor.
    """
    of_name = {name: {r["kind"]: r for r in rows if r["implementation"] == name and "kind" in r} for name in SHOWN}
    name = next((name for name in SHOWN if len(of_name[name]) > 2), None)
    if name is None:
        return {}
    kinds = of_name[name]
    total = kinds[SUM]
    profiled = total["ms_p50"] + total["gap_ms"]
    candidates = {kind: (row["ms_p50"], row["floor_ms"]) for kind, row in kinds.items() if kind not in (SUM, WHOLE)} | {
        GAPS: (total["gap_ms"], 0.0)
    }
    kind, (ms, floor) = max(candidates.items(), key=lambda item: item[1][0] - item[1][1])
    summary: dict[str, Any] = {"shown": name, "floor_ms": round(total["floor_ms"], 4)}
    if WHOLE in kinds:
        summary["step_ms"] = round(kinds[WHOLE]["ms_p50"], 4)
    summary["largest_gap"] = {
        "kind": kind,
        "ms": round(ms, 4),
        "floor_ms": round(floor, 4),
        "excess_ms": round(ms - floor, 4),
        "step_share_at_floor": round(1 - max(0.0, ms - floor) / profiled, 4) if profiled else None,
    }
    return summary


def floor_lines(summary: Mapping[str, Any], device_type: str) -> list[str]:
    """The step beside its floor, and the largest gap, in words."""
    if "largest_gap" not in summary:
        return []
    lines = []
    if "step_ms" in summary:
        times = show.number(summary["step_ms"] / summary["floor_ms"])
        lines.append(
            f"{summary['shown']}: step {show.number(summary['step_ms'])} ms, {times} times its floor of "
            f"{show.number(summary['floor_ms'])} ms (measured ceilings)"
        )
    gap = summary["largest_gap"]
    if gap["excess_ms"] <= 0:
        return [*lines, "no kind of op is above its floor: the measured ceilings are beaten everywhere"]
    share = gap["step_share_at_floor"]
    if gap["kind"] == GAPS:
        what = "the GPU idle between kernels" if device_type == "cuda" else "outside of operators, Python"
        line = f"largest gap to the floor: {what}, {show.number(gap['ms'])} ms; without it"
    else:
        line = (
            f"largest gap to the floor: {gap['kind']}, {show.number(gap['excess_ms'])} ms over its floor of "
            f"{show.number(gap['floor_ms'])} ms; at its floor"
        )
    return [*lines, f"{line} the step would take {share:.2f} of its time"]


def bound(rows: Sequence[Row]) -> dict[str, float]:
    """What fusing everything but matrix products and attention could gain at most, and what was gained.

    The bound is the reference's: all of its profile over its products and attention.  Attention of one's own may beat
    it.
    """
    summary: dict[str, float] = {}
    for name in (REFERENCE, PRESTO):
        of_kind = {row["kind"]: row["ms_p50"] for row in rows if row["implementation"] == name}
        if not of_kind:
            continue
        products = sum(of_kind[kind] for kind in counting_dit.PRODUCTS)
        summary[f"{name}_products_and_attention_ms"] = round(products, 3)
        summary[f"{name}_sum_ms"] = round(of_kind[SUM], 3)
        summary[f"{name}_other_share"] = round(1 - products / of_kind[SUM], 4)
        summary[f"{name}_step_ms"] = round(of_kind[WHOLE], 3)
    if all(f"{name}_step_ms" in summary for name in (REFERENCE, PRESTO)):
        summary["bound"] = round(summary[f"{REFERENCE}_sum_ms"] / summary[f"{REFERENCE}_products_and_attention_ms"], 4)
        summary["gain"] = round(summary[f"{REFERENCE}_step_ms"] / summary[f"{PRESTO}_step_ms"], 4)
        summary["gain_over_bound"] = round(summary["gain"] / summary["bound"], 4)
    return summary


def bound_lines(summary: Mapping[str, Any]) -> list[str]:
    """The bound and how near we are, in words."""
    if "bound" not in summary:
        return []
    return [
        f"not products or attention: reference {summary['reference_other_share']:.1%}, presto "
        f"{summary['presto_other_share']:.1%} of the profile",
        f"bound by fusing alone: {show.number(summary['reference_sum_ms'])} ms over "
        f"{show.number(summary['reference_products_and_attention_ms'])} ms of products and attention = "
        f"{summary['bound']:.3f}x",
        f"gained: {summary['gain']:.3f}x, {summary['gain_over_bound']:.2f} of the bound",
    ]


def sides_table(title: str, rows: Sequence[Row], name: str, device_type: str) -> Table:
    """The reference beside `name`: own time, launches and gaps of every kind, by falling time of the reference."""
    calls = "kernels" if device_type == "cuda" else "calls"
    short, beside = name.replace(GRAPH, ", graph"), REFERENCE + (GRAPH if name.endswith(GRAPH) else "")
    columns = ("kind of op", "reference ms", f"{short} ms", "ratio", f"{calls} ref.", calls, "gaps ref.", "gaps ms")
    ours, theirs = (_by_kind(rows, side) for side in (name, beside))
    cells = []
    for kind in _order(ours | theirs):
        our, their = ours.get(kind, {}), theirs.get(kind, {})
        both = our.get("ms_p50") and their.get("ms_p50")
        cells.append(
            (
                kind,
                show.number(their.get("ms_p50")),
                show.number(our.get("ms_p50")),
                show.times(their["ms_p50"] / our["ms_p50"]) if both else None,
                their.get("launches"),
                our.get("launches"),
                show.number(their.get("gap_ms")),
                show.number(our.get("gap_ms")),
            )
        )
    return show.table(title, columns, cells, wrap=1)


def floor_table(title: str, rows: Sequence[Row], name: str) -> Table:
    """`name` beside the device's ceilings: what each kind must move and do, how fast it did, what is left to gain."""
    columns = ("kind of op", "ms", "floor ms", "excess ms", "of ceiling", "MB", "GFLOP", "GB/s", "TFLOP/s")
    kinds = _by_kind(rows, name)
    cells = [
        (
            kind,
            show.number(row["ms_p50"]),
            show.number(row["floor_ms"]),
            show.number(row["excess_ms"]),
            show.percent(row["share_of_ceiling"]),
            show.number(row["bytes"] / 1e6),
            show.number(row["flops"] / 1e9),
            show.number(row["gbs"]),
            show.number(row["tflops"]),
        )
        for kind, row in ((kind, kinds[kind]) for kind in _order(kinds))
    ]
    return show.table(title, columns, cells, wrap=1)


def _by_kind(rows: Sequence[Row], name: str) -> dict[str, Row]:
    return {row["kind"]: row for row in rows if row["implementation"] == name}


def _order(kinds: Mapping[str, Row]) -> list[str]:
    """Kinds by falling cost, their sum and the whole step last."""
    return sorted(kinds, key=lambda kind: (kind == WHOLE, kind == SUM, -kinds[kind]["ms_p50"]))


def _against(total_bytes: int, flops: int, floor_ms: float, ms: float) -> Row:
    """What was reached, beside the floor; no rate where nothing was timed."""
    return {
        "bytes": total_bytes,
        "flops": flops,
        "gbs": total_bytes / ms / 1e6 if ms else None,
        "tflops": flops / ms / 1e9 if ms else None,
        "floor_ms": floor_ms,
        "share_of_ceiling": floor_ms / ms if ms else None,
        "excess_ms": ms - floor_ms,
    }


def _ops(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """The operators of a kind by falling time, medians over the profiles."""
    names = dict.fromkeys(name for part in parts for name in part.ops)
    of_name = {name: [part.ops[name] for part in parts if name in part.ops] for name in names}
    ops = [
        {
            "op": name,
            "ms": statistics.median(op.ms for op in found),
            "launches": round(statistics.median(op.launches for op in found)),
        }
        for name, found in of_name.items()
    ]
    return sorted(ops, key=lambda op: -op["ms"])


def _unmatched(profiles: Sequence[Profile]) -> bool:
    return any(UNMATCHED in profile.kinds for profile in profiles)
