"""What is drawn for a rendering: within its ranges, in its seat, and said as it sounds."""

import numpy as np
import pytest

from presto_models.data import arrangement as module
from presto_models.data.arrangement import arrange
from presto_models.data.notes import Notes
from presto_models.data.scores import Piece

CHORALE = Piece("bach-x", "bach", "X", "chorale", "")
SONG = Piece("essenFolksong-x", "essenFolksong", "X", "folk song", "")


def notes(parts: int = 4, quarters: int = 32, tempo: float = 80.0, key=(7, "minor")) -> Notes:
    voices = [[[float(q), 1.0, 76 - 7 * part, 2 - (q % 4 > 0)] for q in range(quarters)] for part in range(parts)]
    measures = [float(q) for q in range(0, quarters, 4)]
    return Notes(voices, [[0.0, tempo]], measures, "4/4", list(key) if key else None, -2, float(quarters))


def draws(piece: Piece, score: Notes, count: int = 60):
    return [arrange(piece, score, seed=3, variation=variation) for variation in range(count)]


def test_a_rendering_is_the_same_for_a_seed_and_others_differ():
    again = [arrange(CHORALE, notes(), seed=3, variation=1) for _ in range(2)]
    assert again[0] == again[1]
    assert arrange(CHORALE, notes(), seed=4, variation=1) != again[0] != arrange(CHORALE, notes(), seed=3, variation=2)


def test_tempo_transposition_and_instruments_vary_within_their_ranges():
    made = draws(CHORALE, notes())
    factors = [each.tags["tempo_factor"] for each in made]
    assert 0.75 <= min(factors) < 0.85 and 1.15 < max(factors) <= 1.3
    assert {each.tags["transposition"] for each in made} == set(range(-4, 5))
    assert len({each.tags["instrument"] for each in made}) > 6
    for each in made:
        highest = max(pitch for _, channel, pitch, velocity in each.events if channel == 0 and velocity)
        assert highest == 76 + each.tags["transposition"]
        assert each.seconds == pytest.approx(32 * 60 / 80 / each.tags["tempo_factor"] + 1, rel=1e-3)


def test_high_parts_sit_left_and_low_parts_right():
    for each in draws(CHORALE, notes(), 20):
        assert list(each.pans) == sorted(each.pans) and each.pans[0] < 64 < each.pans[-1]
        loudest = {c: np.mean([p for _, channel, p, v in each.events if channel == c and v]) for c in range(4)}
        assert sorted(loudest, key=loudest.get) == [3, 2, 1, 0]


def test_captions_say_the_tags_and_the_key_that_sounds():
    for each in draws(CHORALE, notes(), 20):
        tonic = module._TONICS[(7 + each.tags["transposition"]) % 12]
        assert each.tags["key"] == f"{tonic} minor" and each.tags["mode"] == "minor"
        assert len(each.captions) == 3
        for caption in each.captions:
            assert each.tags["tempo"] in caption and each.tags["instrument"] in caption and "chorale" in caption
        assert "bach" in each.captions[0] and f"{tonic} minor" in each.captions[0]


def test_tempo_words_follow_the_notes_a_second():
    for tempo, word in ((60.0, "slow"), (180.0, "moderate"), (220.0, "fast")):
        words = {each.tags["tempo"]: each.tags["notes_per_second"] for each in draws(CHORALE, notes(tempo=tempo), 30)}
        assert word in words
        for found, rate in words.items():
            assert found == ("slow" if rate < module.SLOW else "fast" if rate > module.FAST else "moderate")


def test_a_long_piece_gives_different_minutes_and_a_short_song_is_sung_again():
    made = draws(CHORALE, notes(quarters=600), 20)
    assert all(30 <= each.seconds <= 60 for each in made)
    assert any(each.cut for each in made)
    song = draws(SONG, notes(parts=1, quarters=12), 10)
    assert all(each.seconds > 18 for each in song)


def test_what_is_shorter_than_six_seconds_is_no_clip():
    assert arrange(CHORALE, notes(quarters=4), seed=0, variation=0) is None


def test_a_doubled_melody_is_an_octave_lower_in_the_second_instrument():
    made = [each for each in draws(SONG, notes(parts=1), 100) if isinstance(each.tags["instrument"], list)]
    assert 15 < len(made) < 60
    for each in made:
        assert " and ".join(each.tags["instrument"]) in each.captions[0]
        pitches = [{p for _, channel, p, v in each.events if channel == c and v} for c in (0, 1)]
        octaves = [module.MELODIES[name][1] for name in each.tags["instrument"]]
        assert min(pitches[0]) - min(pitches[1]) == 12 * (octaves[0] - octaves[1] + 1)


@pytest.mark.parametrize(
    ("scale", "sharps", "key"), [((0, 2, 4, 5, 7, 9, 11), 0, (0, "major")), ((9, 11, 0, 2, 4, 5, 8), 0, (9, "minor"))]
)
def test_a_key_that_is_not_given_is_heard(scale, sharps, key):
    weights = (4, 1, 2, 1, 3, 1, 1)  # tonic, third and fifth longest
    part = [[float(i), float(w), 60 + pitch, 0] for i, (pitch, w) in enumerate(zip(scale, weights, strict=True))]
    assert module._krumhansl([part], sharps) == key


def test_tempo_changes_move_the_clock():
    score = Notes([[[0, 1, 60, 2]]], [[0.0, 60.0], [4.0, 120.0]], [0.0, 4.0], "4/4", None, 0, 8.0)
    clock = module._Clock(score, 0.5)
    assert clock(np.array([0.0, 2.0, 4.0, 6.0])).tolist() == [0.0, 4.0, 8.0, 10.0]
