"""One generation: the waterfall from prompt to waveform, percentiles, cold start, targets, what the device did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench import show
from bench.names import GRAPH, PRESTO, SCHEDULED
from bench.report import figures
from bench.report.blocks import BAD, GOOD, QUIET, Block, Cell, Figure, Table, without_empty
from bench.report.cells import memory, ms, percent, plain, ratio, word
from bench.report.sections.telemetry import telemetry
from bench.report.source import Source, interval, number, text
from bench.results import Row

BEFORE, AFTER = ("prompt", "prepare", "noise"), ("decode", "stereo")
WHOLE = "total"


@dataclass(frozen=True)
class Stage:
    """A bar of the waterfall; `detail` is the step's budget."""

    name: str
    ms: float
    ends: tuple[float, float] | None = None
    detail: str = ""


def blocks(source: Source) -> list[Block]:
    found: list[Block] = [waterfall(title, stages) for title, stages in walks(source) if stages]
    return [
        *found,
        *summary_ratios(source),
        *targets(source),
        *percentiles(source),
        *cold_start(source),
        *clip(source),
        *telemetry(source),
    ]


def walks(source: Source) -> list[tuple[str, list[Stage]]]:
    """The stages of a generation in their order: by the rows of stages where there are any, else by rows of steps."""
    staged = _stage_rows(source)
    if any(row.get("mode") == "warm" for row in staged):
        mode = "warm"  # one graph has no stages to look at
        batch = min(number(row, "batch") or 1 for row in staged)
        rows = [row for row in staged if row.get("mode") == mode and (number(row, "batch") or 1) == batch]
        rows = [row for row in rows if "kind" not in row]
        title = "Prompt to waveform, stage by stage" + (f", batch {batch:.0f}" if batch > 1 else "")
        return [(title, [_stage(row) for row in rows if row.get("stage") != WHOLE])]
    around = source.summary.get("stages_ms")
    around = dict(around) if isinstance(around, dict) else {}
    around["prepare"] = number(source.summary, "prepare_ms")
    found = []
    for name, what in ((PRESTO, "all blocks"), (SCHEDULED, "layer schedule")):
        mode = GRAPH if any(row.get("implementation") == name + GRAPH for row in source.rows) else ""
        steps = [row for row in source.rows if row.get("implementation") == name + mode and "kind" not in row]
        steps = [row for row in steps if isinstance(row.get("step"), int) and number(row, "ms_p50") is not None]
        before, after = (
            [Stage(each, number(around, each) or 0.0) for each in names if number(around, each) is not None]
            for names in (BEFORE, AFTER)
        )
        if steps:
            title = f"{'Prompt to waveform' if after else 'Steps'}, {what}{', CUDA graphs' if mode else ''}"
            found.append((title, [*before, *map(_stage, steps), *after]))
    return found


def waterfall(title: str, stages: list[Stage]) -> Figure:
    """Each stage where the one before it ends."""
    total = sum(stage.ms for stage in stages)

    def draw(axes: Any) -> None:
        figures.bars(axes, [f"{stage.name}{stage.detail}" for stage in stages])
        begun = 0.0
        for index, stage in enumerate(stages):
            color = figures.OURS if stage.name.startswith("step") else figures.COLORS["c1"]
            axes.barh(index, stage.ms, left=begun, height=0.68, color=color)
            if stage.ends is not None:
                low, high = stage.ends
                ends = [[max(0.0, stage.ms - low)], [max(0.0, high - stage.ms)]]
                axes.errorbar(begun + stage.ms, index, xerr=ends, color=figures.INK, capsize=2, linewidth=0.8)
            end = begun + max(stage.ms, stage.ends[1] if stage.ends else 0.0)
            begun += stage.ms
            figures.number_at(axes, end, index, stage.ms)
        axes.set_xlim(0, total * 1.16 or 1)
        axes.set_xlabel("ms")

    words = ", ".join(f"{stage.name} {show.number(stage.ms)} ms" for stage in stages)
    head = f"{title}: {show.number(total)} ms"
    return figures.figure(head, f"Waterfall. {words}.", figures.height_for(len(stages)), draw)


def summary_ratios(source: Source) -> list[Block]:
    """The paired ratios people quote."""
    names = [name for name in source.summary if "_over_" in name and interval(source.summary, name)]
    rows = [(name.replace("_", " "), ratio(source.summary, name)) for name in names]
    return [Table("Ratios of times, paired", ("ratio", "median (95 %)"), rows, short=True)] if rows else []


def targets(source: Source) -> list[Block]:
    """What others report, with its source and hardware, beside what was measured here."""
    stated = source.summary.get("targets")
    stated = [each for each in stated if isinstance(each, dict)] if isinstance(stated, list) else []
    totals = _totals(source)
    rows: list[tuple[Any, ...]] = []
    for each in stated:
        verdict = text(each.get("verdict"))
        tone = {"met": GOOD, "missed": BAD}.get(verdict or "", QUIET)
        ours = number(each, "ours_ms")
        measured = show.number(totals.get(str(each.get("output"))) if ours is None else ours)
        rows.append(
            (
                word(each, "label") or word(each, "name"),
                Cell(verdict, tone),
                show.number(number(each, "ms")),
                measured,
                word(each, "hardware"),
                word(each, "source"),
                word(each, "what"),
            )
        )
    here = f"ms on {source.device}"
    columns = ("target", "verdict", "their ms", here, "their hardware", "source", "what it includes")
    judged = any(row[1].tone != QUIET for row in rows)
    return [Table("Targets", columns, rows, left=2, words=columns[4:], short=judged)] if rows else []


def percentiles(source: Source) -> list[Block]:
    """Every timed row: median, 95th and 99th percentile."""
    rows = [row for row in source.rows if number(row, "ms_p50") is not None and ("kind" not in row or "stage" in row)]
    if not rows:
        return []
    times = ("p50 ms", "p95 ms", "p99 ms", "rounds", "reference / it", "TFLOP/s", "of matmul")
    columns = ("part", "implementation", "mode", "batch", "blocks", *times)
    cells = [
        (
            _name(row),
            word(row, "implementation"),
            word(row, "mode"),
            word(row, "batch"),
            word(row, "budget") or word(row, "blocks"),
            ms(row),
            plain(row, "ms_p95"),
            ms(row, "ms_p99") if interval(row, "ms_p99") else None,  # with too few rounds it is only their largest
            word(row, "rounds"),
            ratio(row, "reference_over_this"),
            plain(row, "tflops"),
            percent(row, "share_of_matmul_ceiling"),
        )
        for row in rows
    ]
    return [without_empty(Table("Percentiles", columns, cells, left=2, words=("mode",), folded=len(cells) > 40))]


def cold_start(source: Source) -> list[Block]:
    """The first run of each stage, beside the warm one where there is one."""
    of_stage: dict[tuple[Any, Any], dict[str, Row]] = {}
    for row in (row for row in _stage_rows(source) if "kind" not in row):
        of_stage.setdefault((row.get("stage"), row.get("batch")), {})[str(row.get("mode"))] = row
    rows = []
    for (stage, batch), modes in of_stage.items():
        if "cold" not in modes:
            continue
        warm = modes.get("graph") or modes.get("warm") or {}
        cold_ms, warm_ms = number(modes["cold"], "ms_p50"), number(warm, "ms_p50")
        times = show.times(cold_ms / warm_ms) if cold_ms is not None and warm_ms else None
        rows.append((text(stage), text(batch), ms(modes["cold"]), ms(warm), times))
    columns = ("stage", "batch", "cold ms", "warm ms", "cold / warm")
    return [without_empty(Table("Cold start, in new processes", columns, rows))] if rows else []


def clip(source: Source) -> list[Block]:
    """Of each batch as a whole: memory and energy."""
    rows = [
        (
            word(row, "batch"),
            ms(row),
            memory(row),
            memory(row, "resting_bytes"),
            memory(row, "weights_bytes"),
            plain(row, "energy_j_per_clip"),
        )
        for row in source.rows
        if row.get("stage") == WHOLE and number(row, "peak_bytes") is not None
    ]
    columns = ("batch", "total ms", "peak memory", "before it", "weights", "J a clip")
    return [Table("Memory and energy", columns, rows, short=True)] if rows else []


def _stage_rows(source: Source) -> list[Row]:
    rows = [row for row in source.rows if row.get("stage") and row.get("implementation", PRESTO) == PRESTO]
    return [row for row in rows if number(row, "ms_p50") is not None]


def _stage(row: Row) -> Stage:
    name = text(row.get("stage")) or f"step {row.get('step')}"
    blocks = number(row, "budget") or number(row, "blocks")
    detail = f" ({blocks:.0f} blocks)" if blocks is not None and name.startswith("step") else ""
    return Stage(name, number(row, "ms_p50") or 0.0, interval(row, "ms_p50"), detail)


def _name(row: Row) -> str | None:
    stage, step = text(row.get("stage")), text(row.get("step"))
    stage = stage and " ".join(part for part in (stage, text(row.get("kind"))) if part)
    return stage or (None if step is None else "all steps" if step == "all" else f"step {step}")


def _totals(source: Source) -> dict[str, float | None]:
    """Milliseconds by what came out: the whole in one graph where there is one."""
    totals = {name: number(source.summary.get("total_ms"), name) for name in ("mono", "stereo")}
    prompt = number(source.summary.get("stages_ms"), "prompt") or 0.0
    for name in totals:
        whole = number(source.summary.get("waveform_one_graph_ms"), name)
        if whole is not None:
            totals[name] = whole + prompt
    return totals
