"""Which pieces there are, and that no tune is in two splits."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from presto_models.data import scores

pytest.importorskip("music21")

ABC = "X:{x}\nT:{title}\nR:reel\nM:4/4\nL:1/8\nK:{key}\n{notes}|\n\n"


@pytest.fixture(scope="module")
def everything() -> list[scores.Piece]:
    return scores.find_pieces()


def test_the_corpus_is_found_and_split_by_share(everything: list[scores.Piece]) -> None:
    count = Counter(piece.collection for piece in everything)
    assert set(count) == set(scores.COLLECTIONS)
    assert count["bach"] > 350
    assert count["ryansMammoth"] > 1000
    assert len({piece.id for piece in everything}) == len(everything)
    for collection in ("bach", "ryansMammoth", "oneills1850", "essenFolksong"):
        split = Counter(piece.split for piece in everything if piece.collection == collection)
        assert 0.02 < split["test"] / split.total() < 0.1, collection
        assert 0.02 < split["validation"] / split.total() < 0.1, collection
    assert any(piece.genre == "classical movement" and piece.split == "test" for piece in everything)


def test_no_title_and_no_work_is_in_two_splits(everything: list[scores.Piece]) -> None:
    splits = defaultdict(set)
    for piece in everything:
        if piece.text is not None or piece.collection == "bach":
            title = scores.normalized_title(piece.title)
            if title not in ("", "untitled", "lied", "gan ainm") and not title.startswith("bwv"):
                splits[title].add(piece.split)
        else:
            splits[Path(piece.path).parent.name if piece.path.count("movement") else piece.path].add(piece.split)
    assert len(splits) > 4000
    assert not {title: found for title, found in splits.items() if len(found) > 1}


def test_a_transposed_variant_under_another_name_stays_with_its_tune(tmp_path: Path) -> None:
    folder = tmp_path / "ryansMammoth"
    folder.mkdir()
    other = tmp_path / "oneills1850"
    other.mkdir()
    tunes = []
    for number in range(60):  # tunes whose first notes differ, each again a step higher in the other collection
        letters = "".join("CDEFGAB"[(number // 7**place) % 7] for place in range(4)) + "CDEFGABCDEF"
        higher = letters.translate(str.maketrans("CDEFGAB", "DEFGABc"))
        title = f"Name {chr(97 + number % 26)}{chr(97 + number // 26)}"
        (folder / f"t{number}.abc").write_text(ABC.format(x=1, title=title, key="C", notes=letters))
        tunes.append(ABC.format(x=number + 1, title=title[::-1], key="D", notes=higher))
    (other / "all.abc").write_text("".join(tunes))
    found = scores.find_pieces(tmp_path)
    split = {piece.id: piece.split for piece in found}
    assert len(found) == 120
    assert set(split.values()) == {"train", "validation", "test"}
    for number in range(60):
        assert split[f"ryansMammoth-t{number}-000"] == split[f"oneills1850-all-{number:03d}"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Olympic -- Hornpipe", "The Olympic"),
        ("Lamentation of Owen Roe O'Neill, The", "THE LAMENTATION OF OWEN ROE ONEILL"),
        ("Ich dank’ dir", "ich dank dir"),
    ],
)
def test_spellings_of_one_title(one: str, other: str) -> None:
    assert scores.normalized_title(one) == scores.normalized_title(other)


def test_bad_arguments_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="palestrina unknown"):
        scores.find_pieces(collections=("bach", "palestrina"))
    with pytest.raises(FileNotFoundError, match="no scores"):
        scores.find_pieces(tmp_path)
