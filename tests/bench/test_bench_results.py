"""Result files are whole or absent, and tables fit 100 columns."""

import json
import math

import numpy as np
import pytest
import torch

from bench import machine, show
from bench.measure import Ratio
from bench.results import Report, ratio_fields, sample_fields, write_json


def printed(renderable):
    with show.console.capture() as capture:
        show.console.print(renderable)
    return capture.get()


def test_the_command_names_files_of_this_machine_without_their_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench", "ops", "--json", str(tmp_path / "r.json"), "--plot", "docs/a.png"])
    assert machine.meta(torch.device("cpu"))["command"] == "python -m bench ops --json r.json --plot docs/a.png"


def test_a_report_round_trips(tmp_path):
    row = {"op": "swiglu", "implementation": "presto cpu", "ms": 1.5}
    report = Report({"device": "x"}, rows=[row], summary=ratio_fields("a_over_b", Ratio(1.25, 1.2, 1.3, 9)))
    report.refuse(ValueError("shape is wrong\nsecond line"), implementation="ours")
    report.save(tmp_path / "new folder" / "r.json")
    read = json.loads((tmp_path / "new folder" / "r.json").read_text())
    assert read == {
        "schema_version": 2,
        "bench": "unnamed",
        "meta": {"device": "x"},
        "rows": [{"key": "swiglu/presto cpu", "op": "swiglu", "implementation": "presto cpu", "ms": 1.5}],
        "summary": {"a_over_b": 1.25, "a_over_b_interval": [1.2, 1.3]},
        "refused": [{"implementation": "ours", "reason": "ValueError: shape is wrong"}],
    }


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, {"good": 1})
    for bad in ({"x": object()}, {"x": math.nan}):
        with pytest.raises((TypeError, ValueError)):
            write_json(path, bad)
    assert json.loads(path.read_text()) == {"good": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_rows_that_cannot_be_told_apart_are_not_written(tmp_path):
    rows = [{"op": "swiglu", "ms_p50": 1.0}, {"op": "swiglu", "ms_p50": 2.0}]
    with pytest.raises(ValueError, match="'swiglu'"):
        Report({}, rows=rows).save(tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


def test_a_rows_times_are_all_there():
    fields = sample_fields(np.arange(1.0, 401.0))
    assert (fields["rounds"], fields["ms_p50"], fields["ms_p99"]) == (400, 200.5, pytest.approx(396.01))
    low, high = fields["ms_p99_interval"]
    assert low < 396 < high <= 400
    assert fields["samples_ms"][:2] == [1.0, 2.0]
    few = sample_fields(np.arange(1.0, 11.0))
    assert few["ms_p99_interval"] is None and few["ms_p50_interval"][0] < 5.5
    assert sample_fields(np.array([]))["ms_p50"] is None


def test_no_ratio_adds_nothing():
    assert ratio_fields("a_over_b", None) == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.02134, "0.0213"), (12.44, "12.4"), (1379.6, "1380"), (0.0021, "0.0021"), (0, "0.00"), (None, None)],
)
def test_numbers_show_three_digits(value, text):
    assert show.number(value) == text


def test_a_table_shows_names_left_and_missing_values_as_a_dash():
    text = printed(show.table("title", ("name", "ms"), [("a", 1.0), ("b", None)]))
    assert "a      1.0" in text
    assert "b        -" in text


def test_an_uncertain_ratio_is_marked_and_the_mark_explained():
    row = {"sure": 1.5, "sure_interval": [1.4, 1.6], "unsure": 1.02, "unsure_interval": [0.99, 1.05], "old": 1.01}
    assert [show.ratio(row, name) for name in ("sure", "unsure", "old", "none")] == ["1.50x", "~1.02x", "1.01x", None]
    text = printed(show.table("title", ("name", "ratio"), [("a", show.ratio(row, "unsure"))]))
    assert "~1.02x" in text and "95 %" in text
    assert "95 %" not in printed(show.table("title", ("name", "ratio"), [("a", show.ratio(row, "sure"))]))


def test_a_long_name_breaks_into_lines_where_it_may():
    text = printed(show.table("title", ("name", *"bcdef"), [("word " * 30, *["x" * 14] * 5)], wrap=1))
    assert "…" not in text
    assert text.count("word") == 30


def test_the_machine_line_names_the_ceilings():
    meta = {
        "device": "d",
        "torch": "2",
        "load_average": 0.1,
        "ceilings": {"copy_gbs": 33.0, "matmul_tflops": {"bf16": 0.42}},
    }
    assert "copy 33.0 GB/s" in show.machine_line(meta)
    assert "bf16 0.420" in show.machine_line(meta)
    assert "noise" not in show.machine_line(meta)
    assert "noise" in show.machine_line(meta | {"load_average": 2.0})
