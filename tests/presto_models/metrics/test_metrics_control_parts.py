"""Rows from TOML, what runs come to, the race, and the tasks' controls."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("soundfile")
pytest.importorskip("scipy")
pytest.importorskip("transformers")

from small_pipeline import small_pipeline
from toy_music import RATE, tone

from presto_models.ditto import DittoOptions
from presto_models.ditto.scene import Scene
from presto_models.metrics.control.race import race
from presto_models.metrics.control.rows import by_cost, read_rows, selected
from presto_models.metrics.control.runs import Run, Runs
from presto_models.metrics.control.summary import estimate, steps_until, summarise
from presto_models.metrics.control.tasks import TASKS, IntensityTask, StructureTask, jump

RUN = Run("key", 0, 0, "a note", "piece", 2.0, 8.0, 0.0, {"accuracy": 0.5}, [], None, 3.0, 1_500_000)


def rows_of(tmp_path, text):
    path = tmp_path / "rows.toml"
    path.write_text(text)
    return read_rows(path)


def test_rows_are_read(tmp_path):
    text = """
    [tasks.melody]
    steps = 150
    threshold = 1.5
    [tasks.structure]
    forms = ["AB", "ABA"]

    [[rows]]
    method = "ditto"
    checkpoint = "presto-tiny"
    tasks = ["structure", "melody"]
    learning_rate = 0.01

    [[rows]]
    name = "md-50"
    method = "md"
    checkpoint = "presto-tiny"
    settings = { until = 0.5 }
    tasks = ["loop"]

    [[rows]]
    name = "ditto-9"
    method = "ditto"
    checkpoint = "presto-tiny"
    tasks = ["melody"]
    steps = 9
    stop = true
    """
    rows = rows_of(tmp_path, text)
    assert [row.id for row in rows] == ["melody/ditto", "melody/ditto-9", "structure/ditto", "loop/md-50"]
    melody, nine, structure, loop = rows
    assert melody.options().steps == 150 and melody.options().learning_rate == 0.01 and nine.options().steps == 9
    assert structure.options().steps == DittoOptions().steps and structure.asked == StructureTask(forms=("AB", "ABA"))
    assert loop.arguments()["settings"].until == 0.5 and loop.asked == TASKS["loop"]()
    assert "threshold" not in melody.decides() and nine.decides()["threshold"] == 1.5
    assert melody.decides()["options"] == {"learning_rate": 0.01, "steps": 150}
    assert by_cost(rows)[0].id == "loop/md-50"
    assert selected(rows, ("melody", "md-50")) == [melody, nine, loop] and selected(rows, ()) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('steps = "4"', "row bad: steps must be an int"),
        ("sampler = 3\nsteps = -1", "row bad: steps must be at least 0"),
        ('tasks = ["loops"]', "row bad: tasks must be of outpaint"),
        ('tasks = "loop"', "row bad: tasks must be a list"),
        ('name = "a/b"', "row a/b: name must be letters"),
        ('dtype = "fp8"', "row bad: dtype must be one of fp32, bf16"),
        ("settings = { until = 0.5 }", "row bad: ditto has no settings, got until"),
        ('adaptor = "x"', "row bad: ditto takes no adaptor"),
        ("stop = 1", "row bad: stop must be true or false"),
        ("stop = true", r"row bad: stop needs a threshold in \[tasks.outpaint\]"),
        ("overlap = 2.0", "row bad: overlap unknown; a row has name, method"),
        ('[[rows]]\nmethod = "ditto"\ncheckpoint = "y"\nname = "bad"', "two rows are inpaint/bad, "),
        ('[[rows]]\nmethod = "dito"\ncheckpoint = "y"', "row dito: method must be one of none, "),
        ('[[rows]]\nmethod = "ditto"', "row ditto: checkpoint missing"),
        ('[[rows]]\nmethod = "adaptor"\ncheckpoint = "y"', "row adaptor: adaptor needs an adaptor"),
        ('[[rows]]\nmethod = "md"\ncheckpoint = "y"\ntasks = ["melody"]', "row md: tasks: md can do outpaint, "),
        ('[[rows]]\nmethod = "md"\ncheckpoint = "y"\nsettings = { until = 2 }', "row md: until must be from 0 to 1"),
        (
            '[[rows]]\nmethod = "md"\ncheckpoint = "y"\nsettings = { to = 2 }',
            "row md: .*unexpected keyword argument 'to'",
        ),
        ("[tasks.loops]", "no task loops; there are outpaint"),
        ("[tasks.loop]\ngap = 2", "task loop: gap unknown; it has threshold"),
        ('[tasks.loop]\noverlap = "2"', "task loop: overlap does not fit, got '2'"),
        ("[task.loop]", "task unknown; a file has tasks and rows"),
        ("=", "is no TOML"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        rows_of(
            tmp_path,
            f'[[rows]]\nmethod = "ditto"\ncheckpoint = "x"\nname = "bad"\n{text}\n'.replace(
                'name = "bad"\nname', "name"
            ),
        )


def test_an_interval_covers_the_mean_and_few_runs_have_none():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        found = estimate(rng.normal(3, 1, 30).tolist(), seed=seed)
        hits += found["low"] <= 3 <= found["high"]
    assert 176 <= hits <= 198, "95 % within what 200 draws and a bootstrap of 30 allow"
    assert estimate([1.0, 2.0, 3.0, 6.0]) == {"value": 3.0, "low": None, "high": None}
    late = estimate([1.0, 2.0, 3.0, math.inf, math.inf], np.median)
    assert late["value"] == 3 and late["high"] is None
    assert estimate([1.0, math.inf, math.inf, math.inf, math.inf], np.median)["value"] is None


def test_a_row_is_summed_up():
    searched = [
        replace(
            RUN,
            number=i,
            error=1.0 + i,
            history=[8.0, 4.0 + i, 5.0, float("nan"), 1.0 + i],
            seconds_per_step=2.0,
            seconds=13.0,
        )
        for i in range(5)
    ]
    found = summarise(searched, 3.0, resamples=50, seed=0)
    assert found["error"]["value"] == 3 and found["before"] == {"value": 8, "low": 8, "high": 8}
    assert found["figures"]["accuracy"]["value"] == 0.5 and found["memory_mb"]["value"] == 1.5
    assert found["reached"] == 0.6 and found["steps_to_threshold"]["value"] == 4
    assert found["seconds_to_threshold"]["value"] == 13, "five steps, and three seconds beside them"
    assert found["path"][0] == [5.0, 8.0] and found["path"][-1] == [13.0, 3.0] and found["end"] == [13.0, 3.0]
    assert steps_until(searched[0], 4.5) == 1 and steps_until(searched[0], 0.5) == math.inf
    alone = summarise([replace(RUN, memory=None)], None, resamples=50, seed=0)
    assert alone["seconds_per_step"] is None and alone["memory_mb"] is None and alone["path"] == []
    assert "reached" not in alone and "steps_to_threshold" not in alone


def search(number, errors, step, rest=1.0):
    return replace(RUN, number=number, history=errors, seconds_per_step=step, seconds=step * len(errors) + rest)


def test_the_race_is_won_by_as_much_as_it_is():
    of = [search(i, [8.0, 6.0, 4.0, 2.0], 10.0) for i in range(6)]
    by = [search(i, [9.0, 3.0, 2.0, 1.0], 1.0) for i in range(1, 7)]
    found = race(of, by, resamples=50, seed=0)
    assert found["runs"] == 5 and found["error"] == 2 and found["seconds"] == [41.0, 4.0]
    assert found["ratio"] == {"value": 41 / 4, "low": 41 / 4, "high": 41 / 4} and found["music"] == [2.0, 2.0]
    never = race(of, [search(i, [9.0, 3.0], 1.0) for i in range(6)], resamples=50, seed=0)
    assert never["seconds"] == [41.0, None] and never["ratio"] == {"value": 0, "low": 0, "high": 0}
    assert race(of[:4], by, resamples=50, seed=0)["ratio"]["low"] is None
    assert race(of, [RUN], resamples=50, seed=0) is None and race(of, by[5:], resamples=50, seed=0) is None


def test_a_run_is_kept_whole_or_not_at_all(tmp_path):
    runs, audio = Runs(tmp_path), 2 * torch.randn(1, 800)
    runs.write("a/b", RUN, audio, RATE)
    assert runs.read("a/b", 0, "key") == RUN and runs.read("a/b", 0, "other") is None
    with pytest.raises(ValueError, match="NaN"):
        runs.write("a/b", replace(RUN, error=1.0), audio * math.nan, RATE)
    assert runs.read("a/b", 0, "key") is None, "what it stood for was about to be replaced"
    runs.fail("a/b", 0, "key", "a reason")
    assert runs.failure("a/b", 0, "key") == "a reason" and runs.read("a/b", 0, "key") is None
    assert runs.failure("a/b", 0, "other") is None and runs.failure("a/b", 1, "key") is None


def test_a_break_in_the_music_shows_as_a_jump():
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)).cumsum(0)
    assert jump(x, [50, 100, 150]) == pytest.approx(1, abs=0.5)
    x[100:] += 20
    assert jump(x, [100]) == pytest.approx(20 * math.sqrt(2), rel=0.5) and jump(x, [101]) < 1.5


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_asks_for_something_else_in_other_runs(name):
    task = TASKS[name](**({"overlap": 0.3} if name in ("outpaint", "inpaint", "loop") else {}))
    task = replace(task, gap=0.5) if name == "inpaint" else task
    scene = Scene(small_pipeline(), 2 * RATE)
    clips = [tone(kind, [0, index], 2 * RATE) for index, kind in enumerate(("low", "high", "high"))]
    bound = [task.control(clip, RATE, run, 0.5).bind(scene) for run, clip in enumerate(clips)]
    assert all(each.threshold == 0.5 and each.target.isfinite().all() for each in bound)
    assert not any(torch.equal(bound[0].target, each.target) for each in bound[1:])
    assert set(task.asked()).isdisjoint({"threshold", "steps"})


def test_drawn_curves_lie_around_the_level_and_the_last_is_the_clips_own():
    task, scene = IntensityTask(level=-25.0, depth=5.0), Scene(small_pipeline(), 2 * RATE)
    clip = 0.5 * tone("high", [1], 2 * RATE)
    targets = [task.control(clip, RATE, run, None).bind(scene).target for run in range(5)]
    for target in targets[:4]:
        assert target.min() == pytest.approx(-30, abs=0.2) and target.max() == pytest.approx(-20, abs=0.2)
    crescendo, decrescendo, swell, steps = targets[:4]
    assert (crescendo.diff() > 0).all() and torch.allclose(decrescendo, crescendo.flip(0), atol=0.2)
    assert swell.argmax() == pytest.approx(len(swell) / 2, abs=2) and (steps.diff().abs() < 1e-3).float().mean() > 0.9
    own = 20 * clip.square().mean().sqrt().log10()
    assert targets[4].mean() == pytest.approx(float(own), abs=1.5)
