"""One step taken apart: own time, launches, gaps, and what is above the floor; on CUDA from made-up recordings."""

import itertools
import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from bench import flame, machine, op_profile, results, step_plots, step_rows, steps, trace
from bench.cli import BadOption
from bench.counting import Count
from bench.counting_dit import PRODUCTS
from bench.names import GRAPH, PRESTO, REFERENCE
from bench.op_profile import UNMATCHED, Part, Profile
from bench.roofline import GIVEN, Ceiling
from bench.step_rows import GAPS, SUM, WHOLE

ROOM = "presto_models.dit/block 0/"


def event(category, name, start, end, tid=1, **args):
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": 0,
        "tid": tid,
        "ts": start,
        "dur": end - start,
        "args": args,
    }


def launch(number, start, end):
    return event("cuda_runtime", "cudaLaunchKernel", start, end, correlation=number)


def kernel(number, name, start, end, stream=7):
    return event("kernel", name, start, end, stream, correlation=number, stream=stream)


def eager_trace():
    """Three operators on the CPU, microseconds; their kernels later on streams 7 and 9.

    Stream 7:  gemm 200-230       copy 250-260     attention 300-340
    Stream 9:                     side 255-290
    idle:              230-250 (20)         290-300 (10)
    """
    events = [
        event("user_annotation", trace.STEP, 0, 1000),
        event("user_annotation", f"{ROOM}mlp/up", 10, 50),
        event("cpu_op", "aten::linear", 15, 45),
        event("cpu_op", "aten::mm", 20, 44),
        launch(11, 30, 40),
        event("cpu_op", "presto_kernels::seam", 60, 90),
        event("cuda_runtime", "cudaMemcpyAsync", 62, 66, correlation=12),
        event("cuda_driver", "cuLaunchKernel", 70, 80, correlation=13),
        event("user_annotation", f"{ROOM}self_attention", 100, 150),
        event("cpu_op", "presto_kernels::attention", 105, 140),
        launch(14, 110, 120),
        kernel(11, "gemm", 200, 230),
        event("gpu_memcpy", "Memcpy DtoD", 250, 260, 7, correlation=12),
        kernel(13, "side", 255, 290, stream=9),
        kernel(14, "attention", 300, 340),
    ]
    return sorted(events, key=lambda e: (e["ts"], -e["dur"]))


def replay_trace(names=("gemm", "Memcpy DtoD", "side", "attention")):
    """The same kernels as one graph's: every one launched by the same call, one behind the other."""
    events = [
        event("user_annotation", trace.STEP, 0, 500),
        event("cuda_runtime", "cudaGraphLaunch", 5, 9, correlation=90),
    ]
    return events + [kernel(90, name, 20 + 12 * i, 30 + 12 * i) for i, name in enumerate(names)]


def work(events):
    return op_profile.work_of(trace.spans(events), trace.KERNEL)


def test_kernels_count_for_the_room_that_launched_them():
    kinds = op_profile.by_kind(work(eager_trace()))
    found = {kind: (round(1e3 * part.ms), part.launches, list(part.ops)) for kind, part in kinds.items()}
    assert found == {
        "mlp up": (30, 1, ["aten::linear"]),
        "seams": (10 + 35, 2, ["presto_kernels::seam"]),
        "self-attention": (40, 1, ["presto_kernels::attention"]),
    }


def test_a_gap_is_where_no_stream_works_and_counts_for_the_kernel_behind_it():
    kinds = op_profile.by_kind(work(eager_trace()))
    assert {kind: round(1e3 * part.gap_ms) for kind, part in kinds.items()} == {
        "mlp up": 0,
        "seams": 20,
        "self-attention": 10,
    }


def test_a_kernel_inside_a_longer_one_ends_no_gap():
    events = [kernel(1, "long", 0, 100, 7), kernel(2, "short", 10, 20, 8), kernel(3, "late", 130, 140, 8)]
    assert op_profile.by_kind(work(events))["seams"].gap_ms == pytest.approx(0.030)


def test_a_kernel_whose_launch_was_not_seen_is_in_the_rest():
    (only,) = work([kernel(5, "lonely", 0, 10)])
    assert (only.kind, only.op) == ("seams", "lonely")


def test_a_replayed_graphs_kernels_get_the_kinds_of_the_eager_ones_in_their_places():
    eager = work(eager_trace())
    replayed = op_profile.matched(work(replay_trace()), eager)
    assert [w.kind for w in replayed] == ["mlp up", "seams", "seams", "self-attention"]
    kinds = op_profile.by_kind(replayed)
    assert {kind: (round(1e3 * p.ms), round(1e3 * p.gap_ms)) for kind, p in kinds.items()} == {
        "mlp up": (10, 0),
        "seams": (20, 4),
        "self-attention": (10, 2),
    }


def test_other_kernels_in_the_graph_are_not_given_kinds():
    replayed = op_profile.matched(work(replay_trace(("gemm", "side", "other", "attention"))), work(eager_trace()))
    kinds = op_profile.by_kind(replayed)
    assert set(kinds) == {UNMATCHED} and set(kinds[UNMATCHED].ops) == {"gemm", "side", "other", "attention"}
    rows = step_rows.kind_rows(PRESTO + GRAPH, 0, [Profile(kinds, replayed, [])], COUNTS, CEILING, 0.05)
    assert [row["kind"] for row in rows] == [SUM, WHOLE]
    assert rows[0]["launches"] == 4 and {op["op"] for op in rows[0]["ops"]} == {"gemm", "side", "other", "attention"}


def test_a_cuda_step_is_profiled_eagerly_and_as_a_replayed_graph(monkeypatch):
    monkeypatch.setattr(trace, "record", lambda call, device: call())
    device = torch.device("cuda")
    eager = op_profile.profile(eager_trace, device)
    replayed = op_profile.profile_replay(replay_trace, eager.work, device)
    for profile in (eager, replayed):
        assert {kind: part.launches for kind, part in profile.kinds.items()} == {
            "mlp up": 1,
            "seams": 2,
            "self-attention": 1,
        }
    gaps = [sum(part.gap_ms for part in profile.kinds.values()) for profile in (eager, replayed)]
    assert gaps == pytest.approx([0.030, 0.006])


def test_a_cuda_trace_keeps_host_gpu_and_the_arrows_between_them_apart(tmp_path):
    arrow = {"cat": "ac2g", "name": "ac2g", "id": 11, "pid": 0, "tid": 1, "ts": 30}
    events = eager_trace()
    for each in events:  # the profiler's process numbers: the host's own, and the GPU's index
        each["pid"] = 0 if each["cat"] in trace.ON_GPU else 4242
    arrows = [arrow | {"ph": "s", "pid": 4242}, arrow | {"ph": "f", "tid": 7, "ts": 200}]
    instant = {"ph": "i", "name": "Record Window End", "pid": "", "tid": "", "ts": 2000}
    recorded = trace.from_zero([*events, *arrows, instant])
    trace.write(tmp_path / "trace.json", {PRESTO: recorded, REFERENCE: recorded})
    written = trace.load(tmp_path / "trace.json")
    places = {(e["name"], e["args"]["name"]) for e in written if e["ph"] == "M"}
    assert ("process_name", f"{PRESTO}, GPU 0") in places and ("thread_name", "stream 9") in places
    assert len({e["pid"] for e in written}) == 4 and len({e["id"] for e in written if e["ph"] == "s"}) == 2
    assert not any(e["ph"] == "i" for e in written)


def test_on_a_cpu_gaps_are_what_is_in_no_operator_and_add_up_to_the_step():
    spans = trace.spans([e for e in eager_trace() if e["cat"] in ("user_annotation", "cpu_op")])
    kinds = op_profile.by_kind(op_profile.work_of(spans, trace.OP), op_profile.step_of(spans))
    found = {kind: (round(1e3 * part.ms), part.launches, round(1e3 * part.gap_ms)) for kind, part in kinds.items()}
    assert found == {"mlp up": (30, 1, 15), "seams": (30, 1, 15), "self-attention": (35, 1, 15 + 860)}
    assert sum(part.ms + part.gap_ms for part in kinds.values()) == pytest.approx(1.0)


CEILINGS = machine.Ceilings(20.0, {"fp32": 0.1})
CEILING = Ceiling("here", "bf16", 1000.0, 10.0, GIVEN, "")
COUNTS = {  # floors: 1 ms, 2 ms, 0.5 ms
    "mlp up": Count(1, 10_000_000_000, "", ""),
    "self-attention": Count(1, 20_000_000_000, "", ""),
    "seams": Count(500_000_000, 1_000, "", ""),
}


def profiled(*milliseconds, gap=0.1):
    parts = zip(COUNTS, milliseconds, strict=True)
    return Profile({kind: Part(ms, 3, gap, {"aten::mm": Part(ms, 3)}) for kind, ms in parts}, [], [])


def rows_of(name, *milliseconds, whole=9.0, gap=0.1):
    return step_rows.kind_rows(name, 0, [profiled(*milliseconds, gap=gap)] * 3, COUNTS, CEILING, whole)


def test_a_row_says_what_a_kind_did_and_what_is_above_its_floor():
    row = rows_of(PRESTO, 1.5, 5.0, 0.5)[0]
    assert {name: row[name] for name in ("step", "kind", "implementation", "ms_p50", "launches", "gap_ms")} == {
        "step": 0,
        "kind": "mlp up",
        "implementation": PRESTO,
        "ms_p50": 1.5,
        "launches": 3,
        "gap_ms": 0.1,
    }
    assert row["tflops"] == pytest.approx(10e9 / 1.5e-3 / 1e12) and row["gbs"] == pytest.approx(1 / 1.5e6)
    assert row["floor_ms"] == pytest.approx(1.0) and row["excess_ms"] == pytest.approx(0.5)
    assert row["share_of_ceiling"] == pytest.approx(1 / 1.5)
    assert row["ops"] == [{"op": "aten::mm", "ms": 1.5, "launches": 3}]


def test_the_largest_gap_to_the_floor_is_named_with_what_mending_it_saves():
    rows = rows_of(REFERENCE, 2, 20, 2) + rows_of(PRESTO, 1.5, 5.0, 0.5, whole=7.5)
    summary = step_rows.floor_summary(rows)
    assert (summary["shown"], summary["floor_ms"], summary["step_ms"]) == (PRESTO, 3.5, 7.5)
    gap = summary["largest_gap"]
    assert (gap["kind"], gap["excess_ms"], gap["floor_ms"]) == ("self-attention", 3.0, 2.0)
    assert gap["step_share_at_floor"] == pytest.approx(1 - 3 / 7.3, abs=1e-4)
    lines = step_rows.floor_lines(summary, "cpu")
    assert lines[0] == "presto: step 7.50 ms, 2.14 times its floor of 3.50 ms (measured ceilings)"
    assert lines[1] == (
        "largest gap to the floor: self-attention, 3.00 ms over its floor of 2.00 ms; at its floor the step would take "
        "0.59 of its time"
    )


def test_gaps_may_be_the_largest_and_a_graph_with_kinds_is_what_is_shown():
    rows = rows_of(PRESTO, 1.5, 5.0, 0.5) + rows_of(PRESTO + GRAPH, 1.0, 2.1, 0.5, gap=1.0)
    summary = step_rows.floor_summary(rows)
    assert summary["shown"] == PRESTO + GRAPH and summary["largest_gap"]["kind"] == GAPS
    assert step_rows.floor_lines(summary, "cuda")[1] == (
        "largest gap to the floor: the GPU idle between kernels, 3.00 ms; without it the step would take 0.55 of its "
        "time"
    )


def test_nothing_above_its_floor_is_said_so():
    summary = step_rows.floor_summary(rows_of(PRESTO, 0.9, 1.9, 0.4, gap=0.0))
    assert "no kind of op is above its floor" in step_rows.floor_lines(summary, "cpu")[1]
    assert summary["largest_gap"]["step_share_at_floor"] == 1.0


def bound_rows(name, product, other, whole):
    kinds = dict.fromkeys(PRODUCTS, product) | {"swiglu": other, "seams": other}
    kinds |= {SUM: len(PRODUCTS) * product + 2 * other, WHOLE: whole}
    return [{"implementation": name, "step": 0, "kind": kind, "ms_p50": ms} for kind, ms in kinds.items()]


def test_the_bound_is_all_of_the_reference_over_its_products_and_attention():
    summary = step_rows.bound([*bound_rows(REFERENCE, 10, 15, 110), *bound_rows(PRESTO, 9, 3.5, 80)])
    assert summary["bound"] == pytest.approx(100 / 70, abs=1e-4)
    assert summary["gain"] == pytest.approx(110 / 80)
    assert summary["gain_over_bound"] == pytest.approx(110 / 80 / (100 / 70), abs=1e-4)
    assert (summary["reference_other_share"], summary["presto_other_share"]) == (0.3, 0.1)
    lines = "\n".join(step_rows.bound_lines(summary))
    assert "100 ms over 70.0 ms" in lines and "1.429x" in lines and "1.375x, 0.96 of the bound" in lines


@pytest.mark.parametrize("side", [REFERENCE, PRESTO])
def test_without_both_sides_there_is_no_gain_to_speak_of(side):
    summary = step_rows.bound(bound_rows(side, 10, 15, 110))
    assert "gain" not in summary and step_rows.bound_lines(summary) == []


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The command itself, once, with everything but the trace written."""
    folder = tmp_path_factory.mktemp("steps")
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr(machine, "measure_ceilings", lambda *_: CEILINGS)
        patch.setattr(steps.show.console, "print", lambda *what, **_: lines.append(what))
        status = steps.run(
            steps.StepsOptions(
                config="tiny",
                steps=2,
                dtype="fp32",
                device="cpu",
                seconds=0.1,
                profiles=2,
                device_numbers=("mine:1000:100",),
                plot=str(folder / "waterfall.png"),
                plot_roofline=str(folder / "roofline.svg"),
                flame=str(folder / "flame.svg"),
                kernels=str(folder / "kernels.txt"),
                json=str(folder / "steps.json"),
            )
        )
    return status, folder, lines


def test_the_file_has_every_kind_with_its_floor_and_what_was_there_before(ran):
    status, folder, _ = ran
    content = json.loads((folder / "steps.json").read_text())
    assert status == 0 and content["bench"] == "steps" and not content["refused"]
    rows = {(row["implementation"], row["kind"]): row for row in content["rows"] if "kind" in row}
    for name in (REFERENCE, PRESTO):
        kinds = [row for (side, kind), row in rows.items() if side == name and kind not in (SUM, WHOLE)]
        assert len(kinds) == 10
        assert all(row["rounds"] == 2 and row["launches"] > 0 and row["gap_ms"] >= 0 for row in kinds)
        assert all(sum(op["ms"] for op in row["ops"]) == pytest.approx(row["ms_p50"], rel=0.5) for row in kinds)
        assert rows[name, SUM]["floor_ms"] == pytest.approx(sum(row["floor_ms"] for row in kinds))
        assert rows[name, WHOLE]["excess_ms"] == rows[name, WHOLE]["ms_p50"] - rows[name, WHOLE]["floor_ms"]
    assert rows[PRESTO, "seams"]["launches"] < rows[REFERENCE, "seams"]["launches"]
    summary = content["summary"]
    assert summary["shown"] == PRESTO and summary["floor_ms"] < summary["step_ms"]
    assert {"bound", "gain", "gain_over_bound", "steps_ms", "largest_gap"} <= set(summary)
    assert list(summary["predicted"]) == ["A100 SXM 80 GB", "H100 SXM", "H200 SXM", "B200", "mine"]
    assert all("not measured" in device["basis"] for device in summary["predicted"].values())
    assert list(summary["predicted"]["mine"]["rates"]) == ["fp32"]


def test_every_table_fits_the_page(ran):
    tables = [what[0] for what in ran[2] if hasattr(what[0], "columns")]
    assert len(tables) == 4  # the steps, both sides, the floor, other devices
    for made in tables:
        with steps.show.console.capture() as captured:
            steps.show.console.print(made)
        text = captured.get()
        assert "…" not in text and max(map(len, text.splitlines())) <= 100


def test_pictures_and_the_profilers_table_are_written(ran):
    folder = ran[1]
    assert (folder / "waterfall.png").read_bytes().startswith(b"\x89PNG")
    assert (
        "self-attention" in (folder / "roofline.svg").read_text() or (folder / "roofline.svg").stat().st_size > 10_000
    )
    assert "presto_kernels::seam" in (folder / "kernels.txt").read_text()
    assert not list(folder.glob(".*"))


def test_the_flame_is_svg_whose_boxes_say_what_they_are_and_lie_inside_it(ran):
    root = ElementTree.fromstring((ran[1] / "flame.svg").read_text())
    space = "{http://www.w3.org/2000/svg}"
    boxes = [rect for rect in root.iter(f"{space}rect") if rect.find(f"{space}title") is not None]
    hints = [rect.find(f"{space}title").text for rect in boxes]
    assert any(hint.startswith("presto_models.dit/block 3/mlp/up\n") for hint in hints)
    assert any(hint.startswith("presto_kernels::seam\n") and hint.endswith("\nseams") for hint in hints)
    width = float(root.get("width"))
    assert all(float(r.get("x")) + float(r.get("width")) <= width for r in boxes)


def test_on_cuda_the_flame_has_a_lane_for_every_stream_and_a_page_needs_nothing_else():
    events = eager_trace()
    spans = trace.spans(events)
    made = op_profile.work_of(spans, trace.KERNEL)
    page = flame.page({PRESTO: Profile(op_profile.by_kind(made), made, spans)}, "a <title> & more", html=True)
    assert "stream 7" in page and "stream 9" in page and "thread 1" in page
    assert "a &lt;title&gt; &amp; more" in page and "<script" not in page and "src=" not in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 4}, "--step"),
        ({"profiles": 0}, "--profiles"),
        ({"plot": "x.gif"}, "--plot: must end in .*x.gif"),
        ({"plot_roofline": "x"}, "--plot-roofline"),
        ({"flame": "x.png"}, "--flame"),
        ({"efficiency": (2.0, 1.0)}, "--efficiency"),
        ({"nsight": True, "device": "cpu"}, "--nsight: needs CUDA"),
        ({"device_numbers": ("x",)}, "--device-numbers"),
        ({"device_numbers": ("x:1:1", "x:2:2")}, "--device-numbers"),
    ],
)
def test_what_could_not_be_done_is_refused_before_anything_is_timed(changes, message):
    with pytest.raises(BadOption, match=message):
        steps.check(steps.StepsOptions(**changes))


def test_ctrl_c_while_profiling_keeps_what_was_measured(tmp_path, monkeypatch):
    path = tmp_path / "steps.json"
    profile, left = op_profile.profile, iter(range(3))

    def stopped(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return profile(*arguments)

    monkeypatch.setattr(op_profile, "profile", stopped)
    monkeypatch.setattr(machine, "measure_ceilings", lambda *_: CEILINGS)
    options = steps.StepsOptions(
        config="tiny", steps=1, dtype="fp32", device="cpu", seconds=0.1, profiles=5, json=str(path)
    )
    assert steps.run(options) == 130
    rows = json.loads(path.read_text())["rows"]
    assert {row["implementation"] for row in rows if row.get("kind") == "qkv"} == {REFERENCE, PRESTO}
    assert all(row["rounds"] == 1 for row in rows if row.get("kind") == "qkv")


def test_labels_in_the_roofline_do_not_overlap():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set(xscale="log", yscale="log", xlim=(1, 100), ylim=(0.01, 10))
    step_plots._labels(axes, dict.fromkeys(flame.COLORS, (10.0, 5.0)), 50.0)
    heights = sorted(math.log(text.xyann[1]) for text in axes.texts)
    assert min(b - a for a, b in itertools.pairwise(heights)) > 0.2
    assert heights[-1] < math.log(10)


def test_rows_have_keys_of_their_own():
    rows = rows_of(REFERENCE, 1, 1, 1) + rows_of(PRESTO, 1, 1, 1) + rows_of(PRESTO + GRAPH, 1, 1, 1)
    assert len({results.row_key(row) for row in rows}) == len(rows)
