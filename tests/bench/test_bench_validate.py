"""Result files are what bench/schema says, the page says the same, and what is wrong is found and named."""

import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest

from bench import machine, results, schema, validate
from bench.__main__ import main
from bench.gate.rule import Change, Outcome
from bench.verdicts import verdict_row

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "bench" / "results").glob("*-cpu.json"))
PAGE = ROOT / "docs" / "bench" / "results.md"


@pytest.fixture
def good():
    """A file as `Report.save` writes it, with one timed row."""
    row = {"op": "snake", "implementation": "presto cpu"} | results.sample_fields(results.np.array([1.0, 3.0, 2.0]))
    meta = machine.meta(machine.pick_device("cpu"))
    content = {"schema_version": 2, "bench": "ops", "meta": meta, "rows": [{"key": results.row_key(row), **row}]}
    return content | {"summary": {}, "refused": []}


@pytest.fixture
def problems(tmp_path):
    """What is wrong with a file of this content."""

    def found(content):
        (tmp_path / "r.json").write_text(json.dumps(content))
        return validate.validate(tmp_path / "r.json")[1]

    return found


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(json.loads(schema.FILE.read_text()))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_the_files_in_the_repository_are_right_whatever_their_age(path):
    said, problems = validate.validate(path)
    assert problems == []
    old = "schema_version" not in json.loads(path.read_text())
    assert said.startswith("ok (version 1, read as version 2; " if old else "ok (version 2; ")


@pytest.mark.parametrize(
    "command",
    [
        "ops --ops swiglu --shapes 1x7x64 --dtype fp32 --backward --no-compile --rounds 5 --seconds 0.05",
        "latency --config tiny --steps 2 --rounds 2 --seconds 0 --no-compile",
        "steps --config tiny --steps 2 --rounds 2 --seconds 0 --profiles 1",
        "train --config tiny --blocks 2 --rounds 3 --no-compile --no-memory",
        "decode --config tiny --audio 0.5 --rounds 2 --no-compile",
    ],
    ids=lambda command: command.split()[0],
)
def test_what_a_bench_writes_is_right(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        machine, "measure_ceilings", lambda device, dtypes: machine.Ceilings(30.0, dict.fromkeys(dtypes, 0.4))
    )
    file = tmp_path / "r.json"
    main([*shlex.split(command), "--device", "cpu", "--json", str(file)])  # its status is its own affair
    capsys.readouterr()
    assert main(["validate", str(file)]) == 0, capsys.readouterr().out
    assert f"r.json: ok (version 2; {command.split()[0]}, " in capsys.readouterr().out


def test_a_right_file_has_no_problems(good, problems):
    assert problems(good) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("bench",), 3, "$.bench: 3 is not of type 'string'"),
        (("meta", "device"), None, "$.meta.device: None is not of type 'string'"),
        (("meta", "date"), "yesterday", "$.meta.date: 'yesterday' does not match"),
        (("meta", "marks"), ["throttled", 1], "$.meta.marks[1]: 1 is not of type 'string'"),
        (("rows", 0, "ms_p50"), "fast", "$.rows[0].ms_p50: 'fast' is not of type"),
        (("rows", 0, "ms_p99"), -1.0, "$.rows[0].ms_p99: -1.0 is less than the minimum of 0"),
        (("rows", 0, "batch"), 1.5, "$.rows[0].batch: 1.5 is not of type"),
        (("rows", 0, "eager_over_this"), "2x", "$.rows[0].eager_over_this: '2x' is not of type"),
        (("rows", 0, "eager_over_this_interval"), [1.0], "$.rows[0].eager_over_this_interval: [1.0] is too short"),
        (("rows", 0, "share_of_floor"), -0.5, "$.rows[0].share_of_floor: -0.5 is less than"),
        (("summary", "targets"), [{"ms": 1}], "$.summary.targets[0]: 'name' is a required property"),
        (("refused",), [{"implementation": "compile"}], "$.refused[0]: 'reason' is a required property"),
        (("rows", 0, "op"), "swiglu", "$.rows[0].key: 'snake/presto cpu', but the row's fields make"),
        (("rows", 0, "rounds"), 4, "$.rows[0].samples_ms: 3 samples of 4 rounds"),
        (("rows", 0, "ms_p50"), 2.1, "$.rows[0].ms_p50: 2.1, but its samples' is 2"),
        (("rows", 0, "ms_p50_interval"), [3.0, 1.0], "its low end 3.0 is above its high end 1.0"),
    ],
    ids=lambda value: None,
)
def test_what_is_wrong_is_named_with_its_place(good, problems, path, value, said):
    *folders, last = path
    inner = good
    for name in folders:
        inner = inner[name]
    inner[last] = value
    assert any(said in problem for problem in problems(good)), problems(good)


@pytest.mark.parametrize("name", ["bench", "meta", "rows", "summary", "refused"])
def test_nothing_of_the_file_may_be_missing(good, problems, name):
    del good[name]
    assert problems(good)


def test_a_row_needs_a_figure_and_a_key_of_its_own(good, problems):
    good["rows"].append({"key": "x", "note": "nothing measured"})
    (problem,) = problems(good)
    assert problem.startswith("$.rows[1]: no measured field: one of ms_p50, peak_bytes")
    good["rows"][1:] = [good["rows"][0]]
    assert problems(good) == ["$.rows: 2 rows have the key 'snake/presto cpu'"]


def test_a_verdict_is_a_figure_and_its_interval_may_be_open(good, problems):
    outcome = Outcome("inconclusive", "paired", Change(0.04, -0.01, float("inf"), 0.1, 0.9, 2), 0.1, True)
    launches = [{"base": 1.0, "new": 1.04}, {"base": 1.1, "new": 1.14}]
    rows = [verdict_row("snake", "inconclusive", outcome, launches), verdict_row("swiglu", "gone", note="broken")]
    good["rows"] = [{"key": results.row_key(row), **row} for row in rows]
    assert problems(good) == [] and good["rows"][0]["change_interval"] == [-0.01, None]


def test_the_exit_status_tells_wrong_from_absent(good, tmp_path, capsys):
    right, wrong, none, found = (str(tmp_path / name) for name in ("a.json", "b.json", "c.json", "found.json"))
    Path(right).write_text(json.dumps(good))
    good["rows"] = [{"key": str(index)} for index in range(30)]
    Path(wrong).write_text(json.dumps(good))
    assert main(["validate", right]) == 0
    assert main(["validate", right, wrong, "--json", found]) == 1
    output = capsys.readouterr().out
    assert "a.json: ok (version 2; ops, 1 rows)" in output
    assert "b.json: 30 problems (version 2)" in output and "and 20 more" in output
    assert {file: len(each) for file, each in json.loads(Path(found).read_text()).items()} == {right: 0, wrong: 30}
    assert main(["validate", right, none]) == 2
    assert "c.json: not read\n  No such file or directory" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["validate"])
    assert stopped.value.code == 2


def test_no_number_is_nan(tmp_path, good):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(good | {"summary": {"x": float("nan")}}))
    assert validate.validate(path) == ("not read", ["no JSON (NaN is no number of JSON)"])


def properties(part):
    return {*part.get("properties", {}), *part.get("patternProperties", {})}


def test_the_page_has_every_field_of_the_schema_and_no_other():
    described = json.loads(schema.FILE.read_text())
    parts = described["$defs"]
    expected = {
        "The file": properties(described),
        "meta": properties(parts["meta"]) | properties(parts["meta"]["properties"]["ceilings"]),
        "rows": properties(parts["row"]),
        "summary": properties(parts["summary"]),
        "A target": properties(parts["target"]),
        "refused": properties(parts["refusal"]),
    }
    sections = dict(re.findall(r"^##+ (.+?)\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.M | re.S))
    for title, names in expected.items():
        assert set(re.findall(r"^\| `(.+?)` \|", sections[title], re.M)) == names, title


def test_the_page_and_the_schema_have_the_fields_that_make_a_key():
    text = PAGE.read_text()
    places = [text.index(f"\n| `{name}` |", text.index("## rows")) for name in results.IDENTITY]
    assert places == sorted(places)
    row = json.loads(schema.FILE.read_text())["$defs"]["row"]
    assert set(results.IDENTITY) <= row["properties"].keys()
    for figure in row["anyOf"]:
        assert f"`{figure['required'][0]}`" in text[text.index("A row has at least one of") :].split("\n")[0]
