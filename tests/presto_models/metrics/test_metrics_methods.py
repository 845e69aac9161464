"""The table of methods on a small folder: what is kept, what is left out, and what people see of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("soundfile")
pytest.importorskip("auraloss")
pytest.importorskip("scipy")

from toy_music import RATE, Bands, tone, write_music

from presto_models.metrics import method_report
from presto_models.metrics.clips import choose_clips
from presto_models.metrics.generated import generate_clips
from presto_models.metrics.method_rows import NetworkUse, Row
from presto_models.metrics.methods import MethodsOptions, measure, run

ROOT = Path(__file__).parents[3]
SECONDS = 1.0


class Rounded:
    sample_rate, audio_channels = RATE, 1

    def encode(self, audio):
        return (audio * 16).round()

    def decode(self, latents):
        return latents / 16


class Tones:
    """Plays what the prompt says, the same for every seed where it is told to."""

    autoencoder = Rounded()

    def __init__(self, row, asked):
        self.row, self.asked = row, asked

    def generate(self, prompts, seed):
        self.asked.append((self.row.name, len(prompts), seed))
        if self.row.checkpoint == "broken":
            return torch.full((len(prompts), 1, RATE), torch.nan), RATE
        waves = [
            tone(prompt.split()[0], [0 if self.row.checkpoint == "stuck" else seed + index, 7], RATE)
            for index, prompt in enumerate(prompts)
        ]
        return torch.stack(waves)[:, None], RATE

    def time(self, prompt, seed):
        steps = 10.0 * (self.row.changes.get("steps") or 1)
        return {"pipeline_ms": steps + 10, "steps_ms": steps}

    def use(self):
        return NetworkUse(3, 6, 10, 12)

    def settings(self):
        return {"sampling": {}, "schedule": None}


class Troupe:
    device = torch.device("cpu")

    def __init__(self):
        self.asked = []

    def weights(self, row):
        if row.checkpoint == "missing":
            raise FileNotFoundError("no checkpoint '/some/folder/missing'")
        return {"diffusion.safetensors": row.checkpoint}

    def load(self, row):
        if row.checkpoint == "damaged":
            raise ValueError("/some/folder/damaged/autoencoder.safetensors is not a whole file")
        return Tones(row, self.asked)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_music(tmp_path_factory.mktemp("music"), 1.2, train=12, validation=8, test=8)


@pytest.fixture
def small(folder, tmp_path):
    return MethodsOptions(
        out=str(tmp_path / "result.json"),
        data=str(folder),
        clips=8,
        seconds=SECONDS,
        batch=4,
        prompts=3,
        seeds=3,
        training_clips=12,
        tags=("pitch",),
        resamples=20,
        shrinkage=0.1,
        time_rounds=3,
    )


TEACHER = Row("teacher", "teacher", "owed", "the base", changes={"steps": 9})
FAST = Row("fast", "student", "owed", changes={"steps": 1})
STUCK = Row("stuck", "stuck", "ablation")


def names(result):
    return [entry["name"] for entry in result["rows"] if "left_out" not in entry]


def left_out(result):
    return {entry["name"]: entry["left_out"] for entry in result["rows"] if "left_out" in entry}


def test_a_table_from_end_to_end(small):
    players, rows = Troupe(), [TEACHER, FAST, STUCK, Row("gone", "missing"), Row("nan", "broken")]
    rows.append(Row("cut", "damaged"))
    result = measure(small, rows, players, Bands())
    assert json.loads(Path(small.out).read_text()) == json.loads(json.dumps(result))
    assert names(result) == ["teacher", "fast", "stuck"]
    assert left_out(result)["gone"] == "no checkpoint 'missing'" and "not finite" in left_out(result)["nan"]
    assert left_out(result)["cut"] == "autoencoder.safetensors is not a whole file"
    assert names(measure(small, [rows[-1], TEACHER], players, Bands())) == ["teacher"]
    teacher, fast, stuck = result["rows"][:3]
    assert stuck["diversity"]["value"] == pytest.approx(0, abs=1e-6) and teacher["diversity"]["value"] > 0.01
    assert fast["time"]["speedup"]["value"] == 100 / 20 and teacher["time"]["speedup"]["value"] == 1
    assert (fast["time"]["pipeline_ms"], fast["time"]["steps_ms"]) == (20, 10)
    assert teacher["network"] == {"calls": 3, "evaluations": 6, "blocks": 10, "of_blocks": 12}
    assert teacher["agreement"]["pitch"]["accuracy"]["value"] == 1 and 0 <= teacher["coverage"] <= 1
    references = {entry["name"]: entry for entry in result["references"]["rows"]}
    assert list(references) == ["test", "validation", "reconstruction", "noise"]
    assert (
        max(references["reconstruction"]["fad"]["value"], teacher["fad"]["value"]) < references["noise"]["fad"]["value"]
    )
    assert teacher["fad"]["low"] <= teacher["fad"]["value"] <= teacher["fad"]["high"]


def test_a_later_run_computes_only_what_is_new(small):
    first, rows = Troupe(), [TEACHER, FAST]
    before = measure(small, rows, first, Bands())
    again, ears = Troupe(), Bands()
    same = measure(small, [replace(TEACHER, note="another note"), FAST], again, ears)
    assert again.asked == [] and ears.heard == 0
    assert same["rows"][0] == before["rows"][0] | {"note": "another note"} and same["rows"][1] == before["rows"][1]
    ears = Bands()
    more = measure(small, [TEACHER, FAST, STUCK], again, ears)
    assert {name for name, _, _ in again.asked} == {"stuck"} and ears.heard == 8 + 9
    assert names(more) == ["teacher", "fast", "stuck"] and more["rows"][:2] == before["rows"]


def test_a_run_that_was_stopped_goes_on(small, monkeypatch):
    def stop(self, prompts, seed):
        if seed == 4:  # the second batch
            raise KeyboardInterrupt
        return generate(self, prompts, seed)

    generate, players, ears = Tones.generate, Troupe(), Bands()
    with monkeypatch.context() as patch:
        patch.setattr(Tones, "generate", stop)
        with pytest.raises(KeyboardInterrupt):
            measure(small, [TEACHER, FAST], players, ears)
    assert left_out(json.loads(Path(small.out).read_text())) == dict.fromkeys(("teacher", "fast"), "not reached yet")
    players.asked.clear()
    result = measure(small, [TEACHER, FAST], players, Bands())
    assert players.asked[0] == ("teacher", 4, 4) and names(result) == ["teacher", "fast"]
    whole = measure(
        replace(small, out=str(Path(small.out).with_name("other.json"))), [TEACHER, FAST], Troupe(), Bands()
    )
    assert whole["rows"] == result["rows"]


def test_another_checkpoint_or_setting_is_computed_anew(small):
    measure(small, [TEACHER, FAST], Troupe(), Bands())
    players = Troupe()
    measure(small, [TEACHER, replace(FAST, changes={"steps": 2})], players, Bands())
    assert {name for name, _, _ in players.asked} == {"fast"}
    measure(replace(small, seed=1), [TEACHER], players, Bands())
    assert ("teacher", 4, 1) in players.asked


def test_the_clips_of_evaluate_are_taken_over(small, folder, tmp_path):
    """`evaluate --out work/teacher.json` makes them; a row of the same settings does not make them again."""
    made_with = {"seconds": SECONDS, "steps": 9, "guidance": None, "dtype": None}
    weights = {"diffusion.safetensors": "teacher"}
    prompts = [clip.caption for clip in choose_clips(folder, "test", 8, SECONDS, seed=0, tagged=small.tags)]
    player = Tones(TEACHER, [])
    list(
        generate_clips(
            player.generate,
            prompts,
            tmp_path / "work" / "teacher.clips",
            settings=made_with | {"weights": weights},
            seed=0,
            batch=4,
        )
    )
    players = Troupe()
    measure(replace(small, work=str(tmp_path / "work"), prompts=0), [TEACHER], players, Bands())
    assert players.asked == []


def test_rows_without_time_or_not_asked_for_are_left_out_and_come_later(small):
    players = Troupe()
    result = measure(replace(small, only=("fast",)), [TEACHER, FAST], players, Bands())
    assert left_out(result) == {"teacher": "not asked for yet"} and result["rows"][1]["time"]["speedup"] is None
    result = measure(replace(small, minutes=0.0), [TEACHER, FAST], players, Bands())
    assert names(result) == ["fast"] and "no time: 0 minutes" in left_out(result)["teacher"]
    result = measure(replace(small, time_rounds=0), [TEACHER, FAST], players, Bands())
    assert names(result) == ["teacher", "fast"] and "time" not in result["rows"][0] and "time" in result["rows"][1]


def test_what_cannot_work_is_said_before_anything_is_made(small, tmp_path):
    players = Troupe()
    for options, rows, message in (
        (replace(small, only=("slow",)), [TEACHER], "only: no rows slow; there are teacher"),
        (replace(small, seeds=1), [TEACHER], "seeds must be at least 2"),
        (small, [Row("gone", "missing")], "no row's checkpoint can be used: no checkpoint 'missing'"),
        (replace(small, shrinkage=0.0, clips=4), [TEACHER], "test has 8 embeddings of 8 dimensions"),
        (replace(small, clips=9), [TEACHER], "8 files of at least 1 s"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(options, rows, players, Bands())
    assert players.asked == []
    page = tmp_path / "page.md"
    with pytest.raises(FileNotFoundError, match="docs: no file"):
        run(replace(small, docs=str(page)))
    page.write_text("# no mark\n")
    with pytest.raises(ValueError, match="has no line <!-- methods -->"):
        run(replace(small, docs=str(page)))
    with pytest.raises(ValueError, match="rows and data must be given"):
        run(small)


def test_page_figure_and_terminal_come_from_the_results_alone(small, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    rows = [TEACHER, FAST, replace(STUCK, name="a-student-of-a-longer-name"), Row("gone", "missing")]
    result = measure(small, rows, Troupe(), Bands())
    page, figure = tmp_path / "page.md", tmp_path / "figure.png"
    page.write_text("# Methods\n\n<!-- methods -->\n\nmore\n")
    only_table = MethodsOptions(out=small.out, docs=str(page), plot=str(figure), table_only=True)
    run(only_table)
    text = page.read_text()
    assert "| **owed** |" in text and "| **ablation** |" in text and text.endswith("<!-- end -->\n\nmore\n")
    assert "| gone | left out: no checkpoint 'missing' |" in text and "- teacher: the base" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1, "every row has every column"
    assert f"--data DIR --out {Path(small.out).name} --clips 8" in text and str(tmp_path) not in text
    assert figure.stat().st_size > 5000
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100 and "gone: left out" in said

    assert method_report.fill(text, result) == text, "up to date"
    result["rows"][0]["fad"]["value"] += 1
    assert method_report.fill(text, result) != text, "stale"
    capsys.readouterr()
    run(replace(only_table, docs=None, plot=None, json=True))
    assert json.loads(capsys.readouterr().out)["rows"][1]["name"] == "fast"


def test_the_page_of_this_repository_is_up_to_date():
    results, page = ROOT / "bench" / "results" / "distillation.json", ROOT / "docs" / "distillation.md"
    if not results.exists():
        pytest.skip("the table of methods has not been measured yet")
    text = page.read_text()
    assert method_report.MARK in text
    assert method_report.fill(text, json.loads(results.read_text())) == text, "run evaluate methods --table-only"
