"""Notes as music21 reads them: repeats, ties, keys, tempi, and scores that cannot be played."""

import time
from pathlib import Path

import pytest

from presto_models.data import notes as module
from presto_models.data.notes import BadScore, cached_notes, read_notes
from presto_models.data.scores import Piece

pytest.importorskip("music21")


def abc(body: str, header: str = "") -> Piece:
    return Piece("x", "ryansMammoth", "X", "reel", "", f"X:1\nT:X\nM:4/4\nL:1/4\n{header}K:Dm\n{body}\n")


def pitches(piece: Piece) -> list[int]:
    return [int(note[2]) for note in read_notes(piece).parts[0]]


def test_repeats_and_endings_are_played_out() -> None:
    assert pitches(abc("|: CDEF |1 G4 :|2 A4 |]")) == [60, 62, 64, 65, 67, 60, 62, 64, 65, 69]


def test_ties_join_across_the_bar_and_keep_their_start() -> None:
    notes = read_notes(abc("C2D2- | D2E2 |"))
    assert [note[:3] for note in notes.parts[0]] == [[0, 2, 60], [2, 4, 62], [6, 2, 64]]


def test_grace_notes_are_left_out_and_chords_are_whole() -> None:
    assert sorted(pitches(abc("{B}[CEG]4 | z4 |"))) == [60, 64, 67]


def test_key_metre_tempo_and_accents() -> None:
    notes = read_notes(abc("DEFG | A4 |", "Q:1/4=90\n"))
    assert notes.key == [2, "minor"]
    assert notes.metre == "4/4"
    assert notes.tempi == [[0.0, 90.0]]
    assert [note[3] for note in notes.parts[0]] == [2, 1, 1, 1, 2]


def test_without_a_tempo_a_dance_moves_at_the_usual_rate() -> None:
    for body in ("CDEF | GABc |", "C/D/E/F/ G/A/B/c/ | C/D/E/F/ G/A/B/c/ |"):
        notes = read_notes(abc(body))
        onsets = len(notes.parts[0]) / (notes.length * 60 / notes.tempi[0][1])
        assert onsets == pytest.approx(4.6, rel=0.25)


def test_bad_scores_say_why_and_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadScore, match="no notes"):
        cached_notes(abc("z4 | z4 |"), tmp_path, 10)
    monkeypatch.setattr(module, "read_notes", lambda piece: pytest.fail("read again"))
    with pytest.raises(BadScore, match="no notes"):
        cached_notes(abc("z4 | z4 |"), tmp_path, 10)
    missing = Piece("y", "bach", "Y", "chorale", str(tmp_path / "missing.mxl"))
    monkeypatch.undo()
    with pytest.raises(BadScore, match="music21 cannot read it"):
        cached_notes(missing, tmp_path, 10)


def test_a_score_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_notes", lambda piece: time.sleep(5))
    began = time.monotonic()
    with pytest.raises(BadScore, match="timeout"):
        cached_notes(abc("C4 |"), tmp_path, 0.1)
    assert time.monotonic() - began < 2


def test_cached_notes_are_the_same(tmp_path: Path) -> None:
    piece = abc("C>D E/F/G | (3CDE F2 |")
    assert cached_notes(piece, tmp_path, 10) == cached_notes(piece, tmp_path, 10) == read_notes(piece)
