"""Tags: a closed set of values in a few fields, each field one learned token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeAlias

import torch
from torch import Tensor, nn

FIELDS = ("collection", "mode", "tempo", "instrument")
ABSENT = ("", "unknown")  # what datasets write where they do not know

Tags: TypeAlias = Mapping[str, "str | Sequence[str] | None"]


@dataclass(frozen=True)
class TagVocabulary:
    """Which fields there are and which values each can take.

    Args:
        fields: their names, in the order of their tokens.
        values: for each field its values, at least one.  Two that differ only in case are the same one.
    """

    fields: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.fields or len(set(self.fields)) != len(self.fields) or len(self.fields) != len(self.values):
            raise ValueError(
                f"fields must be at least one, all different, with a tuple of values each; got {self.fields} and "
                f"{len(self.values)} tuples of values"
            )
        for field, values in zip(self.fields, self.values, strict=True):
            folded = [value.casefold() for value in values]
            if not values or len(set(folded)) != len(folded) or set(folded) & set(ABSENT):
                raise ValueError(
                    f"{field} must have at least one value, all different whatever their case, none of them empty or "
                    f"'unknown'; got {values}"
                )

    @classmethod
    def build(cls, items: Iterable[Tags], fields: Sequence[str] = FIELDS) -> TagVocabulary:
        """The values that occur in the tags of a dataset's items, sorted; fields that none of them has are left out."""
        found: dict[str, dict[str, str]] = {field: {} for field in fields}
        seen: set[str] = set()
        for tags in items:
            seen.update(tags)
            for field, spellings in found.items():
                for value in _given(field, tags.get(field)):
                    spelling = spellings.setdefault(value.casefold(), value)
                    spellings[value.casefold()] = min(spelling, value)  # whichever order the items come in
        found = {field: spellings for field, spellings in found.items() if spellings}
        if not found:
            raise ValueError(f"no item has a tag in the fields {', '.join(fields)}; they have {sorted(seen)}")
        return cls(
            tuple(found), tuple(tuple(spellings[key] for key in sorted(spellings)) for spellings in found.values())
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[str]]) -> TagVocabulary:
        """Of field to values, what :meth:`to_dict` wrote."""
        return cls(tuple(values), tuple(tuple(each) for each in values.values()))

    def to_dict(self) -> dict[str, list[str]]:
        """Field to values, ready for JSON (in order, which a reader must keep)."""
        return {field: list(values) for field, values in zip(self.fields, self.values, strict=True)}

    def __len__(self) -> int:
        """How many values all fields have together, V."""
        return sum(map(len, self.values))

    def restrict(self, tags: Tags) -> dict[str, str | Sequence[str] | None]:
        """The tags in fields of this vocabulary: a dataset's items often have more."""
        return {field: value for field, value in tags.items() if field in self.fields}

    def selection(self, tags: Sequence[Tags | None]) -> Tensor:
        """Which values B samples have: fp32 ``[B, fields, V]``, on the CPU.

        A row is zero where the field is absent: not there, None, empty or "unknown".  k values in one field count
        1 / k each.

        Raises:
            ValueError: a field or a value this vocabulary does not have.  TypeError: a value is not a string.
        """
        selection = torch.zeros(len(tags), len(self.fields), len(self))
        first = [sum(map(len, self.values[:position])) for position in range(len(self.fields))]
        for sample, given in enumerate(tags):
            for field, value in (given or {}).items():
                if field not in self.fields:
                    raise ValueError(f"no tag field {field!r}{_meant(field, self.fields)}; there are {self.fields}")
                position = self.fields.index(field)
                names = {_index(field, name, self.values[position]) for name in _given(field, value)}
                for index in names:
                    selection[sample, position, first[position] + index] = 1 / len(names)
        return selection


class TagEmbedding(nn.Module):
    """One token a field: the mean of the learned vectors of the values given, exactly zero where the field is absent.

    Args:
        vocabulary: the values.
        text_dim: width of a token.
    """

    def __init__(self, vocabulary: TagVocabulary, text_dim: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.weight = nn.Parameter(torch.empty(len(vocabulary), text_dim))
        nn.init.normal_(self.weight, std=0.5)  # the text tokens beside them: MiniLM's last states have 0.54

    def forward(self, selection: Tensor) -> Tensor:
        """``vocabulary.selection(tags)`` ``[B, fields, V]`` to tokens ``[B, fields, text_dim]``."""
        return selection.to(self.weight) @ self.weight  # not F.embedding: its backward adds in any order on CUDA


def parse_tags(words: Sequence[str]) -> dict[str, list[str]]:
    """Tags from a command line: ``["mode=minor", "instrument=flute", "instrument=harp"]``."""
    tags: dict[str, list[str]] = {}
    for word in words:
        field, equals, value = word.partition("=")
        if not equals or not field.strip():
            raise ValueError(f"a tag is written field=value, got {word!r}")
        tags.setdefault(field.strip(), []).append(value.strip())
    return tags


def _given(field: str, value: str | Sequence[str] | None) -> list[str]:
    """The values given for a field; none where it is absent."""
    if value is None:
        return []
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, Sequence) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise TypeError(f"a tag is a string or a list of strings, got {value!r} for {field!r}")
    return [name.strip() for name in names if name.strip().casefold() not in ABSENT]


def _index(field: str, name: str, values: tuple[str, ...]) -> int:
    for index, value in enumerate(values):
        if value.casefold() == name.casefold():
            return index
    raise ValueError(f"no {field} {name!r}{_meant(name, values)}; there are: {', '.join(values)}")


def _meant(name: str, known: Sequence[str]) -> str:
    folded = {value.casefold(): value for value in known}
    close = get_close_matches(name.casefold(), folded, n=1)
    return f" (did you mean {folded[close[0]]!r}?)" if close else ""
