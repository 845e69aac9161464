"""Forms and their matrices."""

import pytest
import torch
from heard import RATE, Heard, NoQuestions, noise, scene_of, tone
from hypothesis import given
from hypothesis import strategies as st
from small_pipeline import small_pipeline

from presto_models.ditto import DittoOptions, Intensity, Melody, Structure, optimize
from presto_models.ditto.structure import parts_of

pytest.importorskip("transformers")  # its filter banks


def piece(form, seconds, rate=RATE):
    """A part of A is a hum with hiss, of B noise, of C a shrill tone; no two are the same samples."""
    each = seconds / len(form)
    parts = []
    for seed, letter in enumerate(form):
        hiss = noise(each, rate=rate, level=0.003, seed=seed)
        sounds = {
            "A": tone(200, each, rate=rate),
            "B": noise(each, rate=rate, seed=seed + 9),
            "C": tone(3000, each, rate=rate),
        }
        parts.append(sounds[letter] + hiss)
    return torch.cat(parts)


def test_music_of_that_form_is_near_and_of_another_is_far():
    scene = scene_of(8.0)
    bound = {form: Structure(form=form).bind(scene) for form in ("ABBA", "ABAB", "A B3")}
    made = Heard(scene, piece("ABBA", 8.0))
    assert float(bound["ABBA"].error(made)) < 0.05
    assert float(bound["ABBA"].figures(made)["correlation"]) > 0.97
    assert float(bound["ABAB"].error(made)) > 0.5
    assert float(bound["A B3"].error(made)) > 0.5
    three = Structure(form="ABCA").bind(scene)
    assert float(three.error(Heard(scene, piece("ABCA", 8.0)))) < float(three.error(made))


def test_the_target_is_of_blocks():
    bound = Structure(form="ABA").bind(scene_of(9.0))
    target = bound.target
    rows = len(target)
    assert rows == pytest.approx(90, abs=20)  # about ten a second
    at = {second: round(second * rows / 9) for second in (1.5, 4.5, 7.5)}
    middle = target[list(at.values())][:, list(at.values())]
    torch.testing.assert_close(middle, torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, -1, 1]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(target, target.T, atol=1e-5, rtol=0)
    thirds = Structure(form="ABC").bind(scene_of(9.0)).target
    assert float(thirds[at[1.5], at[7.5]]) == pytest.approx(-0.5, abs=0.02)


def test_relative_lengths_move_the_borders():
    scene = scene_of(8.0)
    target = Structure(form="A1B3").bind(scene).target
    at = len(target) // 8
    row = target[at // 2]
    assert float(row[at]) > 0.9
    assert float(row[3 * at + at // 2]) < -0.9
    same = [Structure(form=form).bind(scene).target for form in ("A4 B8 B8 A4", "A2-B8-A2")]
    torch.testing.assert_close(*same)


def test_a_recordings_structure_is_its_own():
    scene = scene_of(8.0)
    reference = piece("ABBA", 8.0)
    bound = Structure(reference=reference, sample_rate=RATE).bind(scene)
    assert float(bound.error(Heard(scene, reference))) < 1e-8
    assert float(bound.error(Heard(scene, piece("ABAB", 8.0)))) > 0.5


@pytest.mark.parametrize("seconds", [4.0, 12.0])
def test_a_recording_of_another_length_is_resampled_and_that_is_said(seconds, caplog):
    scene = scene_of(8.0)
    bound = Structure(reference=piece("ABBA", seconds), sample_rate=RATE).bind(scene)
    assert f"the reference has {seconds:.2f} s, the music 8.00 s: its structure is resampled" in caplog.text
    assert float(bound.error(Heard(scene, piece("ABBA", 8.0)))) < 0.1


def test_parts_that_sound_alike_need_not_be_equally_loud():
    scene = scene_of(8.0)
    level = torch.linspace(1, 0.1, 8 * RATE)
    bound = Structure(form="ABBA").bind(scene)
    assert float(bound.error(Heard(scene, piece("ABBA", 8.0) * level))) < 0.05


@pytest.mark.parametrize(
    ("form", "parts"),
    [
        ("ABBA", (("A", 1), ("B", 1), ("B", 1), ("A", 1))),
        ("A4 B8 B8 A4", (("A", 4), ("B", 8), ("B", 8), ("A", 4))),
        (" A1.5B|C ", (("A", 1.5), ("B", 1), ("C", 1))),
        ("A, B", (("A", 1), ("B", 1))),
    ],
)
def test_forms_are_read(form, parts):
    assert parts_of(form) == parts


@pytest.mark.parametrize("form", ["", " ", "abba", "AB?A", "4A", "A-", "A4.B", "ÄB", "A -4 B"])
def test_what_does_not_parse_is_named_with_what_fits(form):
    with pytest.raises(ValueError, match="form must") as raised:
        parts_of(form)
    assert repr(form) in str(raised.value)


@given(st.text(alphabet="AB0129.- ,?x", max_size=40))
def test_any_text_is_a_form_or_an_error(text):
    try:
        parts = parts_of(text)
    except ValueError:
        return
    assert "".join(letter for letter, _ in parts) == "".join(c for c in text if c in "AB")


@pytest.mark.parametrize(
    ("structure", "error", "message"),
    [
        ({}, ValueError, "a form or a reference, got neither"),
        ({"form": "AB", "reference": tone(440, 3.0)}, ValueError, "got both"),
        ({"form": 4}, TypeError, "got int"),
        ({"form": "AAA"}, ValueError, "two different letters"),
        ({"form": "A0B"}, ValueError, "above 0"),
        ({"form": "A" + 400 * "9" + "B"}, ValueError, "finite"),
        ({"form": "ABABABABAB"}, ValueError, "parts of 0.30 s in 3 s of music; they must have at least 0.5 s"),
        ({"reference": tone(440, 3.0)}, ValueError, "sample_rate must be given"),
        ({"reference": tone(440, 1.5), "sample_rate": RATE}, ValueError, "at least 2 s .*, got 1.50 s"),
        ({"reference": torch.zeros(3 * RATE), "sample_rate": RATE}, ValueError, "more than one timbre"),
        ({"reference": [0.0], "sample_rate": RATE}, TypeError, "reference must be"),
    ],
)
def test_no_structure(structure, error, message):
    with pytest.raises(error, match=message):
        Structure(**structure).bind(scene_of(3.0))


def test_a_step_asks_the_device_nothing_and_two_controls_share_one_spectrum():
    scene = scene_of(2.0)
    structure, melody = Structure(form="AB").bind(scene), Melody(notes=[0]).bind(scene)
    audio = piece("AB", 2.0).requires_grad_()
    made = Heard(scene, audio)
    with NoQuestions():
        (gradient,) = torch.autograd.grad((structure.error(made) + melody.error(made)).sum(), audio)
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) > 0
    assert structure.timbre.spectrum.key == melody.chroma.spectrum.key
    assert sum(key == melody.chroma.spectrum.key for key in made._shared) == 1


def test_optimising_brings_music_nearer_to_all_of_several_controls():
    pipeline = small_pipeline(sampler="pingpong", steps=2, guidance=1.0)
    options = DittoOptions(steps=8, learning_rate=0.05)
    controls = [Structure(form="AB", weight=100.0), Melody(notes=[2]), Intensity(curve=[-30.0, -20.0], weight=0.01)]
    result = optimize(pipeline, controls, prompt="a flute", seconds=2.0, seed=3, options=options)
    outcome = result.outcomes["structure"]
    assert outcome.obtained.shape[1:] == outcome.target.shape
    assert float(outcome.history[-1, 0]) < float(outcome.history[0, 0])
