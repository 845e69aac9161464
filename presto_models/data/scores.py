"""The pieces to render: what music21's corpus holds, found without parsing music, and split so that no tune crosses.

Only titles and the first notes of each piece are read here (plain text of ABC, XML inside mxl), so that listing some
twelve thousand tunes takes seconds. Pieces are joined into one group where they are movements of one work, where their
titles agree once normalised, or where their first notes move by the same diatonic steps; a group lands in one split.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

COLLECTIONS = ("bach", "ryansMammoth", "oneills1850", "essenFolksong", "beethoven", "mozart", "haydn", "joplin")
SPLITS = ("train", "validation", "test")
HELD_OUT_SHARE = 0.05  # of the pieces, for validation and as much again for test
FINGERPRINT_STEPS = 10  # among thousands of dances fewer would join strangers
_CHORALE_STEPS = 6  # Bach ornaments his settings of one tune, and not every setting has a title

_CLASSICAL = ("beethoven", "mozart", "haydn")  # a handful of works each: split as one
_DANCES: tuple[str, ...] = ("double jig", "slip jig", "slipjig", "jig", "reel", "hornpipe", "strathspey", "clog")
_DANCES += ("highland fling", "fling", "waltz", "march", "polka", "air", "slide", "walkaround")
_TITLE_NOISE = re.compile(rf"\b({'|'.join(_DANCES)}|the|a|an|no|[0-9]+|[ivx]+)\b")
_NOT_A_TITLE = frozenset({"", "untitled", "lied", "gan ainm"})
_LETTERS = "CDEFGAB"


@dataclass(frozen=True)
class Piece:
    """One score or tune. `text` is its ABC source; None means that `path` is a MusicXML file of its own."""

    id: str
    collection: str
    title: str
    genre: str
    path: str
    text: str | None = None
    hint: str = ""  # a tempo word that the editor wrote: "Slow.", "Animated"
    split: str = "train"


def corpus_folder() -> Path:
    """Where music21 keeps its scores; ImportError naming the extra where music21 is not installed."""
    try:
        from music21 import common
    except ImportError as error:
        raise ImportError("rendering scores needs music21: pip install 'presto-kernels[data]'") from error
    return Path(common.getCorpusFilePath())


def find_pieces(folder: Path | None = None, collections: Sequence[str] = COLLECTIONS) -> list[Piece]:
    """Every piece of `collections` below `folder` (default: music21's corpus), with its split, sorted by id.

    The split is drawn over all allowed collections whatever `collections` asks for, so that a run over few of them
    agrees with a run over all. Raises ValueError for an unknown collection, FileNotFoundError where nothing is found.
    """
    unknown = sorted(set(collections) - set(COLLECTIONS))
    if unknown:
        raise ValueError(f"collections: {', '.join(unknown)} unknown; choose from {', '.join(COLLECTIONS)}")
    folder = corpus_folder() if folder is None else Path(folder)
    pieces: list[Piece] = []
    keys: list[tuple[str, ...]] = []
    chorales = _chorale_titles()
    for collection in COLLECTIONS:
        for path in sorted((folder / collection).rglob("*")):
            if path.suffix == ".abc":
                found = _from_abc(path, collection)
            else:
                found = _from_xml(path, collection, folder, chorales)
            for piece, same_as in found:
                pieces.append(piece)
                keys.append(same_as)
    if not pieces:
        raise FileNotFoundError(f"no scores of {', '.join(COLLECTIONS)} below {folder}")
    splits = _split(pieces, keys)
    return sorted(
        (replace(p, split=s) for p, s in zip(pieces, splits, strict=True) if p.collection in collections),
        key=lambda piece: piece.id,
    )


def _from_abc(path: Path, collection: str) -> list[tuple[Piece, tuple[str, ...]]]:
    if re.match(r"(test|variant)", path.stem):
        return []  # the collection's own trials of its encoding
    found = []
    for index, text in enumerate(re.split(r"(?m)^(?=X:)", path.read_text(encoding="utf-8", errors="replace"))[1:]):
        field = {name: value.strip() for name, value in re.findall(r"(?m)^([TRNK]):(.*)$", text)[::-1]}
        title = field.get("T", "untitled")
        rhythm = f"{field.get('R', '')} {title}".lower()
        genre = next((dance for dance in _DANCES if re.search(rf"\b{dance}\b", rhythm)), "")
        genre = {"slipjig": "slip jig", "fling": "highland fling"}.get(genre, genre)
        if collection == "essenFolksong":
            genre = "folk song"
        piece = Piece(
            id=f"{collection}-{path.stem}-{index:03d}",
            collection=collection,
            title=title,
            genre=genre or "folk tune",
            path=str(path),
            text=text.strip() + "\n",
            hint=field.get("N", "") if collection == "oneills1850" else "",
        )
        found.append((piece, _same_as(title, _abc_steps(text))))
    return found


def _chorale_titles() -> dict[str, str]:
    """BWV number, "86.6", to the chorale's title: Bach harmonised many tunes several times."""
    from music21.corpus import chorales

    both = (chorales.ChoraleListRKBWV().byBWV, chorales.ChoraleList().byBWV)
    return {str(number): entry["title"] for by_bwv in both for number, entry in by_bwv.items() if entry.get("title")}


def _from_xml(
    path: Path, collection: str, folder: Path, chorales: dict[str, str]
) -> list[tuple[Piece, tuple[str, ...]]]:
    if path.suffix not in (".mxl", ".xml"):
        return []  # the few Humdrum files repeat pieces that are there as MusicXML
    name = "-".join(path.relative_to(folder / collection).with_suffix("").parts)
    genre = {"bach": "chorale", "joplin": "ragtime"}.get(collection, "classical movement")
    work = path.stem if path.parent.name == collection else path.parent.name
    if collection == "bach":
        work = re.split(r"[-a]", name)[0]
        genre = "prelude" if work == "bwv846" else genre  # the one piece there that is no chorale
    title = chorales.get(work.removeprefix("bwv"), "") if collection == "bach" else ""
    piece = Piece(id=f"{collection}-{name}", collection=collection, title=title or name, genre=genre, path=str(path))
    steps = _xml_steps(path)
    keys = [f"work:{collection}-{work}", *_same_as(title, steps)]
    if collection == "bach" and len(steps) > _CHORALE_STEPS:
        no_repeats = [step for step, before in zip(steps, [None, *steps], strict=False) if step != before]
        keys += [f"chorale:{_moves(each[: _CHORALE_STEPS + 1])}" for each in (steps, no_repeats)]
    return [(piece, tuple(keys))]


def normalized_title(title: str) -> str:
    """Lower case, no accents, no articles, numbers or names of dances: one spelling for one tune."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower().replace("'", "")
    return " ".join(sorted(re.sub(r"[^a-z0-9]+", " ", _TITLE_NOISE.sub(" ", plain)).split()))


def _same_as(title: str, steps: list[int]) -> tuple[str, ...]:
    keys = []
    if (plain := normalized_title(title)) not in _NOT_A_TITLE:
        keys.append(f"title:{plain}")
    if len(steps) > FINGERPRINT_STEPS:
        keys.append(f"steps:{_moves(steps)}")
    return tuple(keys)


def _moves(steps: Sequence[int]) -> str:
    return ",".join(str(b - a) for a, b in pairwise(steps))


def _abc_steps(text: str) -> list[int]:
    """Diatonic step numbers of the first notes, without accidentals: a transposed variant gives the same moves."""
    body = "\n".join(line for line in text.splitlines() if not re.match(r"[A-Za-z]:|%", line))
    body = re.sub(r'"[^"]*"|![^!]*!|\{[^}]*\}|\[[A-Z]:[^\]]*\]', "", body)
    steps = []
    for letter, marks in re.findall(r"([A-Ga-g])([,']*)", body)[: FINGERPRINT_STEPS + 1]:
        octave = letter.islower() + marks.count("'") - marks.count(",")
        steps.append(_LETTERS.index(letter.upper()) + 7 * octave)
    return steps


def _xml_steps(path: Path) -> list[int]:
    """As for ABC, of the first part; nothing where the file cannot be read (parsing it will say why)."""
    try:
        if path.suffix == ".mxl":
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith(".xml") and not n.startswith("META-INF"))
                text = archive.read(name).decode("utf-8", errors="replace")
        else:
            text = path.read_text(encoding="utf-8", errors="replace")
    except (OSError, zipfile.BadZipFile, StopIteration):
        return []
    steps: list[int] = []
    for note in re.finditer(r"<note\b.*?</note>", text, re.S):
        pitch = re.search(r"<step>([A-G])</step>.*?<octave>(\d)</octave>", note[0], re.S)
        if pitch and "<chord" not in note[0] and "<grace" not in note[0]:
            steps.append(_LETTERS.index(pitch[1]) + 7 * int(pitch[2]))
        if len(steps) > FINGERPRINT_STEPS:
            break
    return steps


def _split(pieces: Sequence[Piece], keys: Sequence[tuple[str, ...]]) -> list[str]:
    """Groups of pieces that share a key, ranked by a hash within their pool; the first of modest size are held out."""
    parent = list(range(len(pieces)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[str, int] = {}
    for index, same_as in enumerate(keys):
        for key in same_as:
            a, b = root(first.setdefault(key, index)), root(index)
            parent[max(a, b)] = min(a, b)
    pool = ["classical" if piece.collection in _CLASSICAL else piece.collection for piece in pieces]
    pools: dict[str, list[int]] = defaultdict(list)
    size: Counter[int] = Counter()  # of a group, without what other collections have of it
    for index in range(len(pieces)):
        group = root(index)
        size[group] += pool[index] == pool[group]
        if index == group:
            pools[pool[index]].append(index)
    split_of: dict[int, str] = {}
    for groups in pools.values():
        groups.sort(key=lambda index: hashlib.sha256(pieces[index].id.encode()).digest())
        # A collection of one or two works cannot give one away: all of it is for training.
        wanted = HELD_OUT_SHARE * sum(size[index] for index in groups) if len(groups) >= 5 else 0.0
        held_out: Counter[str] = Counter()
        for index in groups:
            fits = (
                split
                for split in ("test", "validation")
                if held_out[split] < wanted and size[index] <= max(4, wanted / 2)
            )
            split_of[index] = split = next(fits, "train")
            held_out[split] += size[index]
    return [split_of[root(index)] for index in range(len(pieces))]
