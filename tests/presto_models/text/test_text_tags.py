"""Tags: their vocabulary and their tokens."""

import copy
import json

import pytest
import torch

from presto_models.text import TagEmbedding, TagVocabulary, parse_tags

ITEMS = [
    {"collection": "chorales", "mode": "minor", "instrument": ["organ", "flute"], "title": "no field"},
    {"collection": "rags", "mode": "Minor", "instrument": "piano", "tempo": None},
    {"collection": "chorales", "mode": "major", "instrument": [], "tempo": "unknown"},
]
VOCABULARY = TagVocabulary(("mode", "instrument"), (("major", "minor"), ("flute", "organ", "piano")))


def test_vocabulary_of_a_dataset():
    vocabulary = TagVocabulary.build(ITEMS)
    assert vocabulary.to_dict() == {
        "collection": ["chorales", "rags"],
        "mode": ["major", "Minor"],  # one value in two spellings
        "instrument": ["flute", "organ", "piano"],
    }
    assert TagVocabulary.build(reversed(ITEMS)) == vocabulary
    assert TagVocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
    assert TagVocabulary.build(ITEMS, fields=("title",)).fields == ("title",)
    assert vocabulary.restrict(ITEMS[0]) == {key: ITEMS[0][key] for key in ("collection", "mode", "instrument")}
    assert hash(vocabulary) == hash(copy.deepcopy(vocabulary))


def test_selection():
    chosen = VOCABULARY.selection(
        [{"mode": "MINOR ", "instrument": ["piano", "flute", "piano"]}, None, {"mode": "major"}]
    )
    assert chosen.shape == (3, 2, 5)
    assert chosen[0].tolist() == [[0, 1, 0, 0, 0], [0, 0, 0.5, 0, 0.5]]
    assert not chosen[1].any()
    assert chosen[2].tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


def test_absent_is_exactly_zero_and_learns_nothing():
    torch.manual_seed(0)
    embedding = TagEmbedding(VOCABULARY, 8)
    absent = [None, {}, {"mode": None}, {"mode": ""}, {"mode": "unknown", "instrument": []}, {"mode": ["Unknown"]}]
    assert not embedding(VOCABULARY.selection(absent)).any()
    tokens = embedding(VOCABULARY.selection([{"instrument": "organ"}]))
    assert not tokens[0, 0].any() and torch.equal(tokens[0, 1], embedding.weight[3])
    tokens.sum().backward()
    assert embedding.weight.grad.sum(1).tolist() == [0, 0, 0, 8, 0]


def test_several_values_are_their_mean():
    embedding = TagEmbedding(VOCABULARY, 8)
    token = embedding(VOCABULARY.selection([{"instrument": ["organ", "flute"]}]))[0, 1]
    assert torch.allclose(token, (embedding.weight[2] + embedding.weight[3]) / 2)


@pytest.mark.parametrize(
    ("tags", "error", "message"),
    [
        ({"mode": "minour"}, ValueError, "no mode 'minour' .did you mean 'minor'.*there are: major, minor"),
        ({"instrument": "xylophone"}, ValueError, "no instrument 'xylophone'; there are: flute, organ, piano"),
        ({"instruments": "organ"}, ValueError, "no tag field 'instruments' .did you mean 'instrument'"),
        ({"mode": 3}, TypeError, "string or a list of strings, got 3 for 'mode'"),
        ({"instrument": ["organ", 1]}, TypeError, "string or a list of strings"),
    ],
)
def test_unknown_tags(tags, error, message):
    with pytest.raises(error, match=message):
        VOCABULARY.selection([tags])


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ((), ()),
        (("mode", "mode"), (("a",), ("b",))),
        (("mode",), ()),
        (("mode",), ((),)),
        (("mode",), (("major", "Major"),)),
        (("mode",), (("major", "unknown"),)),
    ],
)
def test_vocabularies_that_say_nothing_clear(fields, values):
    with pytest.raises(ValueError, match="must"):
        TagVocabulary(fields, values)


def test_items_without_tags():
    with pytest.raises(ValueError, match=r"no item has a tag in the fields collection.*\['title'\]"):
        TagVocabulary.build([{"title": "x"}, {}])


def test_tags_from_a_command_line():
    assert parse_tags(["mode=minor", "instrument=flute", "instrument = harp"]) == {
        "mode": ["minor"],
        "instrument": ["flute", "harp"],
    }
    for word in ("minor", "=minor"):
        with pytest.raises(ValueError, match="field=value"):
            parse_tags([word])
