"""Loudness curves: what is read, what is asked for, and what becomes of it."""

import math

import numpy as np
import pytest
import torch
from heard import RATE, Heard, NoQuestions, noise, scene_of
from small_pipeline import small_pipeline

from presto_models.ditto import Curve, DittoOptions, Intensity, optimize, read_curve
from presto_models.ditto.control import bind_all

RISING = Curve((0.0, 3.0), (-40.0, -15.0))


def rising(seconds=3.0, start=-40.0, stop=-15.0, seed=0):
    """Noise of the loudness of a straight line."""
    samples = round(seconds * RATE)
    return noise(seconds, level=1.0, seed=seed) * 10 ** (torch.linspace(start, stop, samples) / 20)


@pytest.mark.parametrize(
    "curve", [RISING, torch.tensor([-40.0, -15.0]), [-40, -27.5, -15]], ids=["curve", "tensor", "list"]
)
def test_music_that_follows_has_no_error(curve):
    scene = scene_of(3.0)
    bound = Intensity(curve=curve).bind(scene)
    assert bound.target.shape == (bound.loudness.frames,)
    followed, against = Heard(scene, rising()), Heard(scene, rising(start=-15.0, stop=-40.0))
    assert float(bound.error(followed)) < 0.5  # dB², of the noise and of silence before and behind the music
    assert float(bound.error(against)) > 100
    figures = bound.figures(followed)
    assert float(figures["correlation"]) > 0.99
    assert float(figures["mean absolute error (dB)"]) < 0.5


def test_the_correlation_asks_for_the_shape_alone():
    scene = scene_of(3.0)
    bound = Intensity(curve=RISING, correlation=True).bind(scene)
    assert float(bound.error(Heard(scene, rising(start=-30.0, stop=-25.0)))) < 0.05
    assert float(bound.error(Heard(scene, rising(start=-15.0, stop=-40.0)))) == pytest.approx(2, abs=0.02)
    with pytest.raises(ValueError, match=r"must change for correlation=True"):
        Intensity(curve=[-20.0, -20.0], correlation=True).bind(scene)


def test_a_flat_curve_has_no_correlation_to_tell_of():
    scene = scene_of(1.0)
    assert "correlation" not in Intensity(curve=[-20.0, -20.0]).bind(scene).figures(Heard(scene, noise(1.0)))


def test_each_sample_has_its_own_error():
    scene = scene_of(3.0, batch=2)
    audio = torch.stack([rising(), rising(start=-15.0, stop=-40.0)])
    bound = Intensity(curve=RISING).bind(scene)
    both = bound.error(Heard(scene, audio))
    alone = [bound.error(Heard(scene, one)) for one in audio]
    torch.testing.assert_close(both, torch.cat(alone))


@pytest.mark.parametrize("correlation", [False, True])
def test_a_step_asks_the_device_nothing(correlation):
    scene = scene_of(1.0)
    bound = Intensity(curve=[-40.0, -15.0], correlation=correlation).bind(scene)
    audio = noise(1.0).requires_grad_()
    with NoQuestions():
        (gradient,) = torch.autograd.grad(bound.error(Heard(scene, audio)).sum(), audio)
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) > 0


def test_a_curve_of_another_length_is_stretched_and_that_is_said(caplog):
    scene = scene_of(3.0)
    fits = Intensity(curve=RISING).bind(scene)
    assert not caplog.records
    longer = Intensity(curve=Curve((0.0, 4.5, 9.0), (-40.0, -27.5, -15.0))).bind(scene)
    torch.testing.assert_close(longer.target, fits.target)
    assert "ends at 9 s and the music at 3 s: stretched" in caplog.text


def test_a_curve_that_begins_late_holds_its_first_value():
    values = Curve((1.0, 2.0), (-30.0, -10.0)).at(torch.tensor([0.0, 0.9, 1.5, 2.0]), 2.0)
    torch.testing.assert_close(values, torch.tensor([-30.0, -30.0, -20.0, -10.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("seconds", "db", "message"),
    [
        ((0, 1), (-20,), "as many dB values as times, got 1 for 2"),
        ((0,), (-20,), "at least 2 points, got 1"),
        ((0, 1, 1), (-20, -20, -20), "must increase, got 1 after 1"),
        ((0, math.nan), (-20, -20), "finite and not negative, got nan"),
        ((-1, 1), (-20, -20), "finite and not negative, got -1"),
        ((0, 1), (-20, math.nan), "-80 to 0 .*, got nan"),
        ((0, 1), (-20, 3), "-80 to 0 .*, got 3"),
        ((0, 1), (-200, -3), "-80 to 0 .*, got -200"),
    ],
)
def test_no_curve(seconds, db, message):
    with pytest.raises(ValueError, match=message):
        Curve(seconds, db)


@pytest.mark.parametrize(
    ("curve", "error", "message"),
    [
        ("loud", TypeError, "list of dB values, got str"),
        (None, TypeError, "list of dB values, got NoneType"),
        ([[-20.0, -10.0]], ValueError, r"got \(1, 2\)"),
        ([-20.0], ValueError, r"at least 2, got \(1,\)"),
        ([-20.0, "loud"], TypeError, "must hold numbers"),
        ([-20.0, math.nan], ValueError, "got nan"),
    ],
)
def test_nothing_else_is_a_curve(curve, error, message):
    with pytest.raises(error, match=message):
        Intensity(curve=curve).bind(scene_of(1.0))


def test_a_curve_is_read(tmp_path):
    file = tmp_path / "curve.csv"
    file.write_text("\ufeffseconds, db\r\n0,-40\r\n\r\n2.5, -12.5\r\n", encoding="utf-8")
    assert read_curve(file) == Curve((0.0, 2.5), (-40.0, -12.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header seconds,db, got nothing"),
        ("0,-40\n1,-20\n", "header seconds,db, got 0,-40"),
        ("time,db\n0,-40\n", "got time,db"),
        ("seconds,db\n", "nothing behind it"),
        ("seconds,db\n0,-40\n1\n", "line 3: expected seconds,db, got 1 fields"),
        ("seconds,db\n0,-40\n1,loud\n", "line 3: db must be a number, got 'loud'"),
        ("seconds,db\n0,-40\n1,nan\n", "line 3: db must be a number, got 'nan'"),
        ("seconds,db\nx,-40\n1,-20\n", "line 2: seconds must be a number, got 'x'"),
        ("seconds,db\n1,-40\n0,-20\n", "must increase, got 0 after 1"),
        ("seconds,db\n0,-40\n", "at least 2 points, got 1"),
        ("seconds,db\n0,-40\n1,20\n", "got 20"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, message):
    file = tmp_path / "curve.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"curve\.csv.*{message}"):
        read_curve(file)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.csv"):
        read_curve(tmp_path / "no.csv")
    (tmp_path / "curve.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match="not a CSV file"):
        read_curve(tmp_path / "curve.csv")


def test_two_curves_contradict_each_other_and_one_curve_twice_does_not():
    scene = scene_of(3.0)
    bind_all([Intensity(curve=RISING), Intensity(curve=RISING, correlation=True)], scene)
    with pytest.raises(ValueError, match="both ask for loudness from 0 to 3 s"):
        bind_all([Intensity(curve=RISING), Intensity(curve=[-15.0, -40.0])], scene)


@pytest.mark.parametrize("correlation", [False, True])
def test_optimising_brings_music_nearer(correlation):
    pipeline = small_pipeline(sampler="pingpong", steps=2, guidance=1.0)
    options = DittoOptions(steps=6, learning_rate=0.05)
    control = Intensity(curve=[-30.0, -10.0], correlation=correlation)
    result = optimize(pipeline, control, prompt="a flute", seconds=1.0, seed=3, options=options)
    outcome = result.outcomes["intensity"]
    assert outcome.obtained.shape[1:] == outcome.target.shape
    history = np.asarray(outcome.history[:, 0])
    assert history[-1] < history[0]
