"""The table of ways to control, on a small model: what is kept, what is made anew, what is left out, what is shown."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("soundfile")
pytest.importorskip("auraloss")
pytest.importorskip("scipy")
pytest.importorskip("transformers")

from small_pipeline import small_pipeline
from toy_music import RATE, Bands, write_music

from presto_models.metrics.control import command, making
from presto_models.metrics.control.command import measure, run
from presto_models.metrics.control.making import Making
from presto_models.metrics.control.methods import METHODS
from presto_models.metrics.control.options import ControlTableOptions
from presto_models.metrics.control.report import MARK, markdown
from presto_models.metrics.control.rows import Row, read_rows
from presto_models.metrics.control.runs import Runs
from presto_models.metrics.control.tasks import IntensityTask, LoopTask, MelodyTask, OutpaintTask

ROOT = Path(__file__).parents[3]
SECONDS, RUNS = 2.0, 5
OUTPAINT = OutpaintTask(overlap=0.3, threshold=1e-6, steps=3)
NONE = Row("none", "outpaint", OUTPAINT, "none", "teacher", {"sampling_steps": 2})
MASKED = Row("naive-masking", "outpaint", OUTPAINT, "naive-masking", "teacher", {"sampling_steps": 2})
DITTO = Row("ditto", "outpaint", OUTPAINT, "ditto", "teacher", {"sampling_steps": 2}, note="the paper's")
DITTO_2 = Row("ditto-2", "outpaint", OUTPAINT, "ditto-2", "student", {"sampling_steps": 2, "surrogate_steps": 1})
ROWS = [NONE, MASKED, DITTO, DITTO_2]
FEW = [NONE, MASKED, DITTO_2]


class Small:
    """Two checkpoints, one of them a student."""

    device = torch.device("cpu")

    def __init__(self):
        self.pipelines = {"teacher": small_pipeline(), "student": small_pipeline(sampler="pingpong", steps=2)}

    def weights(self, name):
        if name not in self.pipelines:
            raise FileNotFoundError(f"no checkpoint '/some/folder/{name}'")
        return {"diffusion.safetensors": name}

    def load(self, name, dtype=None):
        return self.pipelines[name]

    def find(self, name):
        raise FileNotFoundError(f"no {name!r}")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(
        making, "give_back", lambda: None
    )  # a fifth of a second a run, for a figure that is not looked at


@pytest.fixture(scope="module")
def stage():
    return Small()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_music(tmp_path_factory.mktemp("music"), 2.2, train=12, validation=6, test=6)


@pytest.fixture
def small(folder, tmp_path):
    return ControlTableOptions(
        out=str(tmp_path / "control.json"),
        data=str(folder),
        runs=RUNS,
        seconds=SECONDS,
        training_clips=12,
        tags=("pitch",),
        resamples=20,
    )


@pytest.fixture
def made(monkeypatch):
    """(row, number) of every run that is made."""
    turns, own = [], Making.run

    def noted(self, row, number, key):
        turns.append((row.id, number))
        return own(self, row, number, key)

    monkeypatch.setattr(Making, "run", noted)
    return turns


def entries(result):
    return {entry["id"]: entry for entry in result["rows"]}


def timeless(result):
    """Without what another run takes another time for."""
    timed = ("seconds", "seconds_per_step", "seconds_to_threshold", "memory_mb", "path", "end")
    rows = [{k: v for k, v in entry.items() if k not in timed} for entry in result["rows"]]
    return json.loads(json.dumps([rows, result["references"]]))


def test_a_table_from_end_to_end(small, stage, made):
    gone = Row("gone", "outpaint", OUTPAINT, "none", "missing")
    result = measure(small, [*ROWS, gone], stage, Bands)
    assert json.loads(Path(small.out).read_text())["rows"] == json.loads(json.dumps(result["rows"]))
    assert made[:4] == [
        ("outpaint/none", 0),
        ("outpaint/naive-masking", 0),
        ("outpaint/ditto-2", 0),
        ("outpaint/ditto", 0),
    ]
    assert len(made) == 4 * RUNS and made[-1][1] == RUNS - 1, "one run of every row before the second of any"
    found = entries(result)
    assert found["outpaint/gone"]["left_out"] == "no checkpoint 'missing'"
    none, masked, ditto, ditto_2 = (found[row.id] for row in ROWS)
    assert none["error"] == none["before"] and none["reached"] == 0 and none["seconds_per_step"] is None
    assert masked["error"]["value"] == 0 and masked["reached"] == 1 and masked["before"] == none["before"]
    assert set(masked["figures"]) == {"seam", "fade correlation"}
    assert ditto["steps_to_threshold"]["value"] is None and ditto["seconds_per_step"]["value"] > 0
    assert ditto["error"]["low"] <= ditto["error"]["value"] <= ditto["error"]["high"]
    assert ditto["drift"]["value"] == 0 < ditto_2["drift"]["value"]
    assert len(ditto["path"]) == 3 and ditto["path"][0][1] >= ditto["path"][-1][1]
    for entry in (none, masked, ditto, ditto_2):
        assert entry["runs"] == RUNS and entry["heard"]["fad"]["value"] > 0
        assert 0 <= entry["heard"]["agreement"]["pitch"]["accuracy"]["value"] <= 1
    (race,) = result["races"]
    assert (race["of"], race["by"]) == ("ditto", "ditto-2")
    assert (race["task"], race["runs"]) == ("outpaint", RUNS) and race["seconds"][0] > 0
    assert [entry["name"] for entry in result["references"]["rows"]] == [
        "test",
        "validation",
        "reconstruction",
        "noise",
    ]


def test_a_later_start_makes_only_what_is_new(small, stage, made):
    before = measure(small, [NONE, DITTO], stage, Bands)
    made.clear()
    ears = Bands()
    again = measure(small, [NONE, replace(DITTO, note="another note")], stage, lambda: ears)
    assert made == [] and ears.heard == 0
    assert again["rows"][1] == before["rows"][1] | {"note": "another note"} and again["rows"][0] == before["rows"][0]
    other = replace(DITTO, changes={"sampling_steps": 2, "learning_rate": 0.1})
    changed = measure(small, [NONE, other], stage, Bands)
    assert {row for row, _ in made} == {"outpaint/ditto"} and changed["rows"][0] == before["rows"][0]
    made.clear()
    other = replace(other, asked=replace(OUTPAINT, threshold=1e6))
    entry = measure(small, [NONE, other], stage, Bands)["rows"][1]
    assert made == [], "a threshold that ends no run is only read off"
    assert entry["steps_to_threshold"]["value"] == 0 and len(entry["path"]) == 3
    stopped = measure(small, [NONE, replace(other, stop=True)], stage, Bands)["rows"][1]
    assert len(made) == RUNS and len(stopped["path"]) == 1
    made.clear()
    measure(replace(small, runs=6), [NONE], stage, Bands)
    assert made == [("outpaint/none", 5)], "more runs begin with those there are"
    measure(replace(small, seed=1), [NONE], stage, Bands)
    assert len(made) == 1 + RUNS


def test_a_start_that_was_stopped_goes_on(small, stage, made, monkeypatch):
    write = Runs.write

    def stopped(self, row, run, audio, sample_rate):
        if (row, run.number) == ("outpaint/none", 2):
            raise KeyboardInterrupt
        write(self, row, run, audio, sample_rate)

    with monkeypatch.context() as patch:
        patch.setattr(Runs, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            measure(small, [NONE, MASKED], stage, Bands)
    half = json.loads(Path(small.out).read_text())
    assert [entry["runs"] for entry in half["rows"]] == [2, 2], "what was finished is in the results"
    made.clear()
    result = measure(small, [NONE, MASKED], stage, Bands)
    assert made[0] == ("outpaint/none", 2) and len(made) == 2 * RUNS - 4
    whole = measure(replace(small, out=str(Path(small.out).with_name("other.json"))), [NONE, MASKED], stage, Bands)
    assert timeless(whole)[0] == timeless(result)[0]


def test_shards_make_the_same_table_between_them(small, stage, made):
    whole = measure(replace(small, out=str(Path(small.out).with_name("whole.json"))), FEW, stage, Bands)
    made.clear()
    first = measure(replace(small, shard="1/2"), FEW, stage, Bands)
    share = set(made)
    assert first == {"made": len(share), "left": 0} and not Path(small.out).exists()
    assert {row for row, _ in share} == {row.id for row in FEW}, "every row has runs of both"
    partial = measure(replace(small, collect=True), FEW, stage, Bands)
    assert all(0 < entry["runs"] < RUNS and "fad" not in entry["heard"] for entry in partial["rows"])
    second = measure(replace(small, shard="2/2"), FEW, stage, Bands)
    assert second["made"] + first["made"] == 3 * RUNS and len(set(made)) == 3 * RUNS
    made.clear()
    result = measure(replace(small, collect=True), FEW, stage, Bands)
    assert made == [] and timeless(result) == timeless(whole)


def test_a_row_of_few_runs_says_so_and_has_no_intervals(small, stage):
    result = measure(replace(small, minutes=0.0), ROWS, stage, Bands)
    assert {entry["left_out"] for entry in result["rows"]} == {"no run yet"}
    measure(replace(small, runs=2, only=("outpaint/none", "ditto")), ROWS, stage, Bands)
    result = measure(replace(small, collect=True), ROWS, stage, Bands)
    ditto = entries(result)["outpaint/ditto"]
    assert ditto["runs"] == 2 and ditto["error"]["low"] is None and "fad" not in ditto["heard"]
    assert entries(result)["outpaint/ditto-2"]["left_out"] == "no run yet" and result["races"] == []
    assert "| ditto | 2 of 5 |" in markdown(result)
    measure(small, [NONE], stage, Bands)
    (none,) = measure(replace(small, runs=6, collect=True), [NONE], stage, Bands)["rows"]
    assert none["runs"] == 5 < none["of_runs"] and none["heard"]["fad"]["value"] > 0, "all its task has"


def test_a_run_that_fails_is_told_and_tried_again(small, stage, made, monkeypatch):
    def sometimes(pipeline, controls, *, seed, **rest):
        if seed == 1:
            raise ArithmeticError("the error of /a/b/intensity was NaN")
        return own(pipeline, controls, seed=seed, **rest)

    own = METHODS["none"].call
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "none", replace(METHODS["none"], call=sometimes))
        entry = measure(small, [NONE], stage, Bands)["rows"][0]
    assert entry["runs"] == 4 and entry["failed"] == {"runs": 1, "first": "the error of intensity was NaN"}
    assert entry["error"]["low"] is None and "fad" not in entry["heard"]
    made.clear()
    entry = measure(small, [NONE], stage, Bands)["rows"][0]
    assert made == [("outpaint/none", 1)] and entry["runs"] == RUNS and "failed" not in entry


def test_what_cannot_work_is_said_before_anything_is_made(small, stage, made, tmp_path):
    for options, rows, message in (
        (replace(small, only=("md", "outpaint")), ROWS, "only: no rows md; there are outpaint/none, "),
        (
            small,
            [Row("gone", "outpaint", OUTPAINT, "none", "missing")],
            "no row's checkpoint can be used: no checkpoint",
        ),
        (replace(small, runs=7), ROWS, "6 pieces with files of at least 2 s with the tags .'pitch'. in test, 7 are"),
        (replace(small, shrinkage=0.0, runs=1), ROWS, "test has 4 embeddings of 8 dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(options, rows, stage, Bands)
    for wrong in ("2/1", "0/2", "1", "1/2/3"):
        with pytest.raises(ValueError, match="shard must be i/n"):
            replace(small, shard=wrong)
    with pytest.raises(ValueError, match="shard and collect exclude each other"):
        replace(small, shard="1/2", collect=True)
    with pytest.raises(ValueError, match="runs must be at least 1, got 0"):
        replace(small, runs=0)
    with pytest.raises(ValueError, match="rows and data must be given"):
        run(small)
    page = tmp_path / "page.md"
    page.write_text("# no mark\n")
    with pytest.raises(ValueError, match="has no line <!-- control -->"):
        run(replace(small, docs=str(page)))
    assert made == []


def test_page_figure_and_terminal_come_from_the_results_alone(small, stage, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    long = replace(NONE, name="a-baseline-of-a-very-long-name", note="by itself")
    intensity = Row("none", "intensity", IntensityTask(threshold=1e6), "none", "teacher", {"sampling_steps": 2})
    melody = Row("freedom", "melody", MelodyTask(threshold=2.0), "freedom", "teacher", {"sampling_steps": 2})
    rows = [long, MASKED, DITTO, DITTO_2, intensity, melody, Row("gone", "outpaint", OUTPAINT, "none", "missing")]
    measure(small, rows, stage, Bands)
    page, figure = tmp_path / "page.md", tmp_path / "figure.png"
    page.write_text(f"# Control\n\n{MARK}\n\nmore\n")
    capsys.readouterr()
    only = ControlTableOptions(out=small.out, docs=str(page), plot=str(figure), table_only=True)
    run(only)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100 and "…" not in said
    assert "outpaint/gone: left out: no checkpoint 'missing'" in said and "seam" in said and "accuracy" in said
    for last in ("tags heard", "MB", "errors of their music"):
        assert last in said, "no column is cut off"
    text = page.read_text()
    assert text.endswith("<!-- end -->\n\nmore\n") and "- a-baseline-of-a-very-long-name: by itself" in text
    assert "| **intensity: error in dB², reached at 1e+06; figure: correlation** |" in text
    assert "| gone | left out: no checkpoint 'missing' |" in text and str(tmp_path) not in text
    assert f"--data DIR --out {Path(small.out).name} --runs 5" in text
    table = text.split(MARK)[1].split("\n\n")[1]
    assert len({line.count("|") for line in table.splitlines()}) == 1, "every row has every column"
    assert figure.stat().st_size > 20_000
    run(only)
    assert page.read_text() == text
    capsys.readouterr()
    run(replace(only, docs=None, plot=None, json=True))
    assert json.loads(capsys.readouterr().out)["rows"][0]["name"] == long.name


def test_a_shard_says_what_it_made(small, folder, stage, tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.toml"
    path.write_text('[[rows]]\nmethod = "none"\ncheckpoint = "teacher"\ntasks = ["intensity"]\n')
    monkeypatch.setattr(command, "Checkpoints", lambda *_: stage)
    result = run(replace(small, rows=str(path), shard="1/2"))
    assert result == {"made": 3, "left": 0} and "shard 1/2: 3 runs made, 0 left" in capsys.readouterr().out


@pytest.mark.parametrize("task", [OUTPAINT, LoopTask(overlap=0.3)])
def test_what_is_heard_of_painting_is_as_long_as_the_music(task, stage, folder):
    row = replace(NONE, task="outpaint" if task is OUTPAINT else "loop", asked=task)
    from presto_models.metrics.clips import choose_clips

    clips = choose_clips(folder, "test", 1, SECONDS, seed=0)
    found, audio, rate = Making(Small(), clips, str(folder), seconds=SECONDS, seed=0).run(row, 0, "key")
    assert rate == RATE and audio.shape == (1, SECONDS * RATE) and found.caption == clips[0].caption


def test_the_page_of_this_repository_is_up_to_date():
    results, page = ROOT / "bench" / "results" / "control.json", ROOT / "docs" / "control" / "table.md"
    if not results.exists():
        pytest.skip("the table of ways to control has not been measured yet")
    from presto_models.metrics.pages import fill_page

    text = page.read_text()
    assert MARK in text and fill_page(text, MARK, markdown(json.loads(results.read_text()))) == text


def test_the_rows_of_this_repository_fit():
    rows = read_rows(ROOT / "bench" / "control.toml")
    tasks = {row.task for row in rows}
    assert tasks == {"outpaint", "inpaint", "loop", "intensity", "melody", "structure"}
    for task in tasks:
        assert {"none", "freedom", "ditto", "ditto-2"} <= {row.method for row in rows if row.task == task}
