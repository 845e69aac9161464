"""Melodies, of notes and of recordings."""

import pytest
import torch
from heard import RATE, Heard, NoQuestions, noise, scene_of, tone
from small_pipeline import small_pipeline

from presto_models.ditto import DittoOptions, Melody, Notes, optimize, read_melody
from presto_models.ditto.control import bind_all
from presto_models.ditto.notes import pitch_class

pytest.importorskip("transformers")  # its filter banks
C5, E5, A5 = 523.25, 659.26, 880.0
TUNE = Notes((0.0, 1.0, 2.0), (0, 4, 9))


def tune(level=0.1, rate=RATE):
    """C, E, A, a second each."""
    return torch.cat([tone(f, 1.0, rate=rate, level=level) for f in (C5, E5, A5)])


def classes_of(bound):
    """-1 where nothing is asked for."""
    return torch.where(bound.target.sum(-1) > 0, bound.target.argmax(-1), -1)


@pytest.mark.parametrize(
    "melody",
    [
        {"notes": TUNE},
        {"notes": [0, 4, 9]},
        {"notes": torch.tensor([0, 4, 9])},
        {"reference": tune(), "sample_rate": RATE},
    ],
    ids=["notes", "list", "tensor", "reference"],
)
def test_music_of_that_melody_is_right_and_of_another_is_not(melody):
    scene = scene_of(3.0)
    bound = Melody(**melody).bind(scene)
    right, wrong = Heard(scene, tune()), Heard(scene, tune().flip(0))  # backwards: its middle is right
    assert float(bound.figures(right)["accuracy"]) > 0.97
    assert float(bound.figures(wrong)["accuracy"]) == pytest.approx(1 / 3, abs=0.05)
    assert float(bound.error(right)) < 1.1 < 3 < float(bound.error(wrong))


def test_silence_is_as_wrong_as_can_be_told_from_nothing():
    scene = scene_of(3.0)
    bound = Melody(notes=TUNE).bind(scene)
    assert float(bound.error(Heard(scene, torch.zeros(3 * RATE)))) == pytest.approx(2.485, abs=1e-3)


def test_a_reference_at_another_rate_and_in_stereo():
    scene = scene_of(3.0)
    same = Melody(reference=tune(), sample_rate=RATE).bind(scene)
    stereo = tune(rate=22_050).expand(2, -1)
    other = Melody(reference=stereo, sample_rate=22_050).bind(scene)
    agree = (classes_of(same) == classes_of(other)).float().mean()
    assert float(agree) > 0.95


def test_silence_and_noise_in_a_reference_are_not_counted():
    scene = scene_of(3.0)
    reference = torch.cat([tone(A5, 1.0), torch.zeros(RATE), noise(1.0)])
    bound = Melody(reference=reference, sample_rate=RATE).bind(scene)
    frames = len(bound.target)
    classes = classes_of(bound)
    assert (classes[2 : frames // 3 - 2] == 9).all()
    assert (classes[frames // 3 + 2 : 2 * frames // 3 - 2] == -1).all()
    assert (classes[2 * frames // 3 + 2 :] == -1).float().mean() > 0.9
    quiet = reference.clone()
    quiet[RATE : 2 * RATE] = tone(C5, 1.0, level=1e-5)  # 80 dB below
    assert torch.equal(classes_of(Melody(reference=quiet, sample_rate=RATE).bind(scene))[30:60], classes[30:60])


def test_the_end_of_a_short_reference_ends_what_is_asked_for(caplog):
    scene = scene_of(3.0)
    bound = Melody(reference=tone(A5, 1.0), sample_rate=RATE).bind(scene)
    assert "the reference has 1.00 s, the music 3.00 s: behind that no melody is asked for" in caplog.text
    assert bound.spans[-1][1] == pytest.approx(1.0, abs=0.1)
    wrong_behind = torch.cat([tone(A5, 1.0), tone(C5, 2.0)])
    assert float(bound.figures(Heard(scene, wrong_behind))["accuracy"]) > 0.95


def test_the_rest_of_a_long_reference_is_left_out(caplog):
    Melody(reference=tune(), sample_rate=RATE).bind(scene_of(1.0))
    assert "the reference has 3.00 s, the music 1.00 s: what is longer is left out" in caplog.text


def test_rests_are_not_counted_and_spans_are_where_something_is():
    bound = Melody(notes=Notes((0.5, 1.0, 2.0), (0, -1, 9))).bind(scene_of(3.0))
    (first, second) = bound.spans
    assert first == pytest.approx((0.5, 1.0), abs=0.05)
    assert second == pytest.approx((2.0, 3.0), abs=0.05)
    assert bound.count == int(bound.target.sum())


def test_melodies_of_different_parts_go_together_and_of_one_do_not():
    scene = scene_of(3.0)
    first, last = Notes((0.0, 1.0), (0, -1)), Notes((2.0,), (7,))
    bind_all([Melody(notes=first), Melody(notes=last)], scene)
    with pytest.raises(ValueError, match="melody and melody both ask for melody from 0 to"):
        bind_all([Melody(notes=first), Melody(notes=[7])], scene)


def test_notes_behind_the_end_are_left_out_and_that_is_said(caplog):
    bound = Melody(notes=Notes((0.0, 5.0), (0, 4))).bind(scene_of(1.0))
    assert "1 notes begin behind the music's end at 1 s" in caplog.text
    assert (classes_of(bound) == 0).all()


def test_a_step_asks_the_device_nothing():
    scene = scene_of(1.0)
    bound = Melody(notes=[0]).bind(scene)
    audio = noise(1.0).requires_grad_()
    with NoQuestions():
        (gradient,) = torch.autograd.grad(bound.error(Heard(scene, audio)).sum(), audio)
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize(
    ("melody", "error", "message"),
    [
        ({}, ValueError, "notes or a reference, got neither"),
        ({"notes": [0], "reference": tone(A5, 1.0)}, ValueError, "got both"),
        ({"reference": tone(A5, 1.0)}, ValueError, "sample_rate must be given"),
        ({"reference": tone(A5, 1.0) * float("nan"), "sample_rate": RATE}, ValueError, "finite"),
        ({"reference": torch.zeros(RATE), "sample_rate": RATE}, ValueError, "clear pitch for at least 0.5 s, got 0"),
        ({"reference": noise(1.0), "sample_rate": RATE}, ValueError, "clear pitch"),
        ({"reference": tone(A5, 0.2), "sample_rate": RATE}, ValueError, "frames in 0.20 s"),
        ({"notes": [-1, -1]}, ValueError, "none sounds within the 1 s"),
        ({"notes": Notes((5.0,), (0,))}, ValueError, "none sounds"),
        ({"notes": [12]}, ValueError, "0 .C. to 11 .B., or -1 for a rest, got 12"),
        ({"notes": [0.5]}, ValueError, "got 0.5"),
        ({"notes": []}, ValueError, "at least one"),
        ({"notes": "C4"}, TypeError, "got str"),
        ({"notes": torch.zeros(3)}, TypeError, "integers"),
    ],
)
def test_no_melody(melody, error, message):
    with pytest.raises(error, match=message):
        Melody(**melody).bind(scene_of(1.0))


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("C4", 0),
        ("F#3", 6),
        ("Bb", 10),
        ("bb2", 10),
        ("B#-1", 0),
        ("Cb", 11),
        ("D♯5", 3),
        ("G##", 9),
        ("rest", -1),
        ("Rest", -1),
    ],
)
def test_notes_have_names(name, number):
    assert pitch_class(name) == number


@pytest.mark.parametrize("name", ["H4", "C4.5", "", "60", "C 4", "4C"])
def test_no_names(name):
    with pytest.raises(ValueError, match=r"note must be a name such as C4, F#3 or Bb, or rest, got"):
        pitch_class(name)


def test_a_melody_is_read(tmp_path):
    file = tmp_path / "melody.csv"
    file.write_text("seconds,note\n0,C4\n1.5,F#3\n2,rest\n")
    notes = read_melody(file)
    assert notes == Notes((0.0, 1.5, 2.0), (0, 6, -1))
    times = torch.tensor([0.0, 1.4, 1.5, 2.5])
    assert notes.at(times).tolist() == [0, 0, 6, -1]
    assert Notes((1.0,), (3,)).at(times).tolist() == [-1, 3, 3, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seconds,db\n0,C4\n", "header seconds,note, got seconds,db"),
        ("seconds,note\n0,H4\n", "line 2: note must be a name .* got 'H4'"),
        ("seconds,note\n1,C4\n0,D4\n", "must increase, got 0 after 1"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, message):
    file = tmp_path / "melody.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"melody\.csv.*{message}"):
        read_melody(file)


def test_optimising_brings_music_nearer():
    pipeline = small_pipeline(sampler="pingpong", steps=2, guidance=1.0)
    options = DittoOptions(steps=6, learning_rate=0.05)
    result = optimize(pipeline, Melody(notes=[0, 7]), prompt="a flute", seconds=1.0, seed=3, options=options)
    outcome = result.outcomes["melody"]
    assert outcome.obtained.shape[1:] == outcome.target.shape
    assert float(outcome.history[-1, 0]) < float(outcome.history[0, 0])
    assert 0 <= float(outcome.figures["accuracy"]) <= 1
