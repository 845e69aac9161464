"""Tiny scores of our own, and the small SoundFont that comes with pretty_midi."""

from pathlib import Path

import pytest

from presto_models.data.scores import Piece

TUNE = """X:1
T:Tune {number}
M:4/4
L:1/4
K:{key}
|: {a}{b}cd | e2 d2 | c{b}{a}G | G4 :|
"""


def tune(number: int, key: str = "C", collection: str = "ryansMammoth", split: str = "train") -> Piece:
    text = TUNE.format(number=number, key=key, a="ABcdefg"[number % 7], b="CDEFGAB"[number % 5])
    return Piece(f"{collection}-{number:03d}", collection, f"Tune {number}", "reel", "", text, split=split)


@pytest.fixture(scope="session")
def pieces() -> list[Piece]:
    bad = Piece("oneills1850-bad", "oneills1850", "Bad", "jig", "", "X:1\nT:Bad\nM:4/4\nL:1/4\nK:C\nz4|z4|\n")
    held_out = tune(9, "Am", "oneills1850", "test")
    return [tune(1), tune(2, "G"), tune(3, "Dm"), tune(4, collection="oneills1850"), held_out, bad]


@pytest.fixture(scope="session")
def soundfont() -> Path:
    pretty_midi = pytest.importorskip("pretty_midi")
    pytest.importorskip("tinysoundfont")
    return Path(pretty_midi.__file__).with_name("TimGM6mb.sf2")
