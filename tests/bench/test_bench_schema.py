"""Result files of every version are read, and what is none says so."""

import json
from pathlib import Path

import pytest

from bench import results, schema

RESULTS = Path(__file__).parents[2] / "bench" / "results"
FIRST = {"meta": {"command": "python -m bench ops --first"}, "rows": [{"op": "snake"}], "summary": {}, "refused": []}


def test_a_file_of_the_first_version_is_read(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(FIRST))
    report = schema.read(path)
    assert (report.bench, report.rows) == ("ops", [{"key": "snake", "op": "snake"}])


def test_what_is_saved_is_read_back(tmp_path):
    report = results.Report({"device": "x"}, [{"op": "snake", "ms_p50": 1.5}], {"a": 1}, bench="ops")
    report.save(tmp_path / "r.json")
    read = schema.read(tmp_path / "r.json")
    assert (read.meta, read.summary, read.bench) == ({"device": "x"}, {"a": 1}, "ops")
    assert read.rows == [{"key": "snake", "op": "snake", "ms_p50": 1.5}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[1]", "meta, rows, summary, refused missing"),
        (json.dumps(FIRST | {"rows": {}}), "rows missing or of the wrong kind"),
        (json.dumps(FIRST | {"schema_version": 99}), "schema version 99; this bench reads 1 to 2"),
    ],
)
def test_what_is_no_result_file_says_so(tmp_path, text, message):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(schema.ResultError, match=message):
        schema.read(path)
    with pytest.raises(schema.ResultError, match=r"none\.json: No such file"):
        schema.read(tmp_path / "none.json")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*-cpu.json")), ids=lambda path: path.stem)
def test_what_is_kept_in_the_repository_is_read_and_every_row_has_its_own_key(path):
    keys = [row["key"] for row in schema.read(path).rows]
    assert keys and len(set(keys)) == len(keys)
