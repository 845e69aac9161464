"""Controls beside a scene: what is refused before the first step."""

import pytest
import torch
from small_controls import Level, Near
from small_walks import MAKE, options, pipeline

from presto_models.ditto import optimize
from presto_models.ditto.control import bind_all
from presto_models.ditto.scene import Scene

SCENE = Scene(pipeline(), 8000)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_above_zero_and_finite(weight):
    with pytest.raises(ValueError, match="weight must be above 0 and finite"):
        Level(weight=weight)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_is_finite(threshold):
    with pytest.raises(ValueError, match="threshold must be finite or None"):
        Level(threshold=threshold)


def test_there_must_be_a_control_and_nothing_else():
    with pytest.raises(ValueError, match="controls must hold at least one"):
        bind_all([], SCENE)
    with pytest.raises(TypeError, match=r"controls must be presto_models.ditto controls, got float"):
        bind_all([Level(), 3.0], SCENE)


def test_one_control_is_a_list_of_one():
    assert [bound.name for bound in bind_all(Level(), SCENE)] == ["loudness"]


def test_two_of_a_kind_are_told_apart_by_name():
    names = [bound.name for bound in bind_all([Level(), Near(), Level(), Level()], SCENE)]
    assert names == ["loudness", "latents", "loudness 2", "loudness 3"]


def test_contradictions_are_refused_with_both_names_and_the_time():
    with pytest.raises(ValueError, match=r"loudness and loudness both ask for loudness from 0.5 to 1 s"):
        bind_all([Level(spans=((0.0, 1.0),)), Level(db=-3.0, spans=((0.5, 2.0),))], SCENE)
    with pytest.raises(ValueError, match="contradict each other"):
        told = []
        controls = [Near(to=0.1), Level(), Near(to=0.2)]
        optimize(pipeline(), controls, options=options(), callback=told.append, **MAKE)
    assert not told


def test_what_does_not_contradict_is_let_through():
    bind_all([Level(spans=((0.0, 1.0),)), Level(db=-3.0, spans=((1.0, 2.0),))], SCENE)  # neighbours
    bind_all([Near(to=0.1), Near(to=0.1)], SCENE)  # the same twice
    bind_all([Level(), Near()], SCENE)  # of different kinds


def test_music_is_decoded_once_for_all_controls(monkeypatch):
    decoded = []
    engine = pipeline().engine
    plain = engine.decode
    monkeypatch.setattr(engine, "decode", lambda x: decoded.append(1) or plain(x))
    made = SCENE.made(torch.randn(2, SCENE.length, 5, generator=torch.Generator().manual_seed(0)))
    assert made.mono.shape == (2, 8000) and torch.equal(made.mono, made.audio.mean(1)) and len(decoded) == 1
    assert made.shared("a", lambda: decoded.append(1) or 3) == made.shared("a", lambda: 4) == 3 and len(decoded) == 2


def test_a_recording_is_brought_to_the_scenes_rate_and_channels():
    stereo = torch.stack([torch.ones(4000), -0.5 * torch.ones(4000)]).double()
    there = SCENE.audio(stereo, 8000)
    assert there.shape == (1, 4000) and there.dtype == torch.float32
    torch.testing.assert_close(there, torch.full((1, 4000), 0.25))
    assert SCENE.audio(torch.zeros(4000), 16000).shape == (1, 2000)
    x = SCENE.encode(SCENE.audio(torch.rand(1, 8000), 8000))
    assert x.shape == (SCENE.length, 5) and SCENE.decode(x[None]).shape == (1, 1, 8000)


@pytest.mark.parametrize(
    ("waveform", "error", "message"),
    [
        ([0.0, 1.0], TypeError, "melody must be a floating-point tensor, got"),
        (torch.zeros(8, dtype=torch.int16), TypeError, "got torch.int16"),
        (torch.zeros(3, 8), ValueError, r"melody must be \[samples\]"),
        (torch.zeros(1, 0), ValueError, r"got \(1, 0\)"),
        (torch.tensor([0.0, float("nan")]), ValueError, "must be finite"),
    ],
    ids=str,
)
def test_a_recording_that_is_none_is_refused(waveform, error, message):
    with pytest.raises(error, match=message):
        SCENE.audio(waveform, 8000, name="melody")
