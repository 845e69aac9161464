"""Prompts and tags joined, dropped, cached."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import WordLengths

from presto_models import Conditioning
from presto_models.text import Conditioner, PromptCache, TagVocabulary, drop_conditioning

VOCABULARY = TagVocabulary(("mode", "instrument"), (("major", "minor"), ("flute", "organ", "piano")))
ORGAN = {"mode": "minor", "instrument": "organ"}


def same(left, right):
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in ("tokens", "pooled", "lengths"))


def conditioner(vocabulary=VOCABULARY, **options):
    torch.manual_seed(5)
    return Conditioner(WordLengths(), vocabulary, **options)


def test_tags_come_first_and_padding_last(words):
    model = conditioner()
    both = model(["slow organ", "rag", ""], [ORGAN, None, {"mode": "major"}])
    assert model.max_tokens == 8 and both.tokens.shape == (3, 8, 4)
    assert both.lengths.tolist() == [4, 3, 2]
    assert torch.equal(both.tokens[0, :2], model.tags.weight[[1, 3]])
    assert torch.equal(both.tokens[:, 2:], words(["slow organ", "rag", ""]).tokens)
    assert not both.tokens[1, :2].any() and not both.tokens[2, 1:].any()
    assert both.pooled[:, 0].tolist() == [10, 3, 0]
    assert both.tokens.requires_grad


@given(
    st.lists(
        st.tuples(st.sampled_from(["", " ", "a b", "a b c d e f g"]), st.sampled_from([None, {}, ORGAN])), max_size=5
    )
)
@settings(deadline=None, max_examples=40)
def test_nothing_given_is_null(samples):
    both = conditioner()([prompt for prompt, _ in samples], [tags for _, tags in samples])
    null = both.null()
    for index, (prompt, tags) in enumerate(samples):
        one = slice(index, index + 1)
        assert same(both[one], null[one]) == (not prompt.strip() and not tags)
        padding = both.tokens[index, both.lengths[index] :]
        assert not padding.any()


def test_no_tags_is_all_tags_absent():
    model = conditioner()
    assert same(model(["slow organ", ""]), model(["slow organ", ""], [None, {"mode": "unknown"}]))


def test_a_model_without_tags(words):
    model = conditioner(None)
    assert same(model(["slow organ"]), words(["slow organ"])) and not model.state_dict()
    assert same(model(["slow organ"], [{}]), words(["slow organ"]))
    with pytest.raises(ValueError, match=r"takes no tags, got \{'mode': 'minor'"):
        model(["slow organ"], [ORGAN])


def test_only_the_tags_are_its_weights():
    model = conditioner()
    assert list(model.state_dict()) == ["tags.weight"]
    assert json.loads(json.dumps(model.config)) == {"text": {"kind": "words"}, "tags": VOCABULARY.to_dict()}


def test_config_rebuilds_it(t5_folder):
    from presto_models.text import load_text_encoder

    encoder = load_text_encoder({"kind": "t5", "source": str(t5_folder), "max_tokens": 9})
    model = Conditioner(encoder, VOCABULARY)
    again = Conditioner.from_config(json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    assert same(again(["slow waltz"], [ORGAN]), model(["slow waltz"], [ORGAN]))
    assert copy.deepcopy(model).cache.encoder is encoder  # an average of weights does not copy the language model


def test_text_that_is_all_text_and_of_another_length():
    text = Conditioning(torch.randn(2, 3, 4), torch.randn(2, 3))
    both = conditioner().join(text, drop_text=1.0)
    assert same(both, both.null()) and both.lengths.tolist() == [0, 0]
    assert conditioner().join(text).lengths.tolist() == [5, 5]


def test_misfits():
    model = conditioner()
    with pytest.raises(ValueError, match="one mapping per sample, 2, got 1"):
        model(["a", "b"], [ORGAN])
    with pytest.raises(ValueError, match=r"text\.tokens must be \[B, L, 4\]"):
        model.join(Conditioning(torch.randn(1, 3, 5)))
    with pytest.raises(ValueError, match=r"drop_tags must be from 0 to 1, got 1\.5"):
        model.join(model.encode_text(["a"]), drop_tags=1.5)
    with pytest.raises(TypeError, match="prompts must be a list of strings"):
        model("a")


def test_dropout_rates_and_independence():
    model, size = conditioner(), 4000
    text = Conditioning(torch.ones(size, 2, 4), torch.ones(size, 3), torch.full((size,), 2))
    seeded = torch.Generator().manual_seed(1)
    kept = model.join(text, [ORGAN] * size, drop_text=0.3, drop_tags=0.2, drop_all=0.1, generator=seeded)
    text_kept, tags_kept = kept.tokens[:, 2].any(1), kept.tokens[:, 0].any(1)
    for share, wanted in (
        (text_kept, 0.9 * 0.7),
        (tags_kept, 0.9 * 0.8),
        (text_kept & tags_kept, 0.9 * 0.7 * 0.8),
        (~text_kept & ~tags_kept, 0.1 + 0.9 * 0.3 * 0.2),
    ):
        assert abs(share.float().mean() - wanted) < 4 * (wanted * (1 - wanted) / size) ** 0.5
    assert torch.equal(kept.pooled[:, 0] > 0, text_kept)
    wanted = torch.where(text_kept | tags_kept, 2 + 2 * text_kept.long(), 0)
    assert torch.equal(kept.lengths, wanted)


def test_dropping_is_not_having_been_given():
    model = conditioner()
    text = model.encode_text(["slow organ"])
    assert same(model.join(text, [ORGAN], drop_tags=1.0), model(["slow organ"]))
    assert same(model.join(text, [ORGAN], drop_text=1.0), model([""], [ORGAN]))
    gone = model.join(text, [ORGAN], drop_all=1.0)
    assert same(gone, gone.null())


def test_dropout_is_seeded_and_takes_nothing_when_off():
    model = conditioner()
    text = model.encode_text(["a", "b", "c", "d", "e", "f", "g", "h"])

    def join(seed):
        return model.join(text, drop_text=0.5, generator=torch.Generator().manual_seed(seed))

    assert same(join(1), join(1)) and not same(join(1), join(2))
    state = torch.get_rng_state()
    model.join(text)
    drop_conditioning(text, 0.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_drop_conditioning():
    torch.manual_seed(2)
    size = 4000
    whole = Conditioning(torch.randn(size, 2, 4) + 9, torch.randn(size, 3) + 9)  # lengths None
    dropped = drop_conditioning(whole, 0.1, torch.Generator().manual_seed(3))
    gone = ~dropped.pooled.any(1)
    assert abs(gone.float().mean() - 0.1) < 4 * (0.09 / size) ** 0.5
    assert not dropped.tokens[gone].any() and dropped.lengths is None
    assert torch.equal(dropped.tokens[~gone], whole.tokens[~gone])
    assert drop_conditioning(whole, 0.0) is whole
    with pytest.raises(ValueError, match="probability must be from 0 to 1"):
        drop_conditioning(whole, -0.1)


def test_cache_asks_once_and_forgets_the_oldest(words):
    cache = PromptCache(words, capacity=2)
    first = cache(["a b", "c", "a b "])
    assert words.asked == [["a b"], ["c"]] and first.lengths.tolist() == [2, 1, 2]
    cache(["a b"])
    cache(["d"])  # "c" goes
    assert len(cache) == 2 and words.asked[2:] == [["d"]]
    cache(["a b"])
    cache(["c"])
    assert words.asked[2:] == [["d"], ["c"]]
    first.tokens.zero_()  # a caller's tensors are the caller's
    assert same(cache(["a b"]), words(["a b"]))
    assert cache([]).tokens.shape == (0, 6, 4)
    with pytest.raises(ValueError, match="capacity must be at least 0"):
        PromptCache(words, -1)


def test_a_prompt_embeds_alike_in_any_company(minilm):
    alone = PromptCache(minilm)(["rag"])
    company = PromptCache(minilm)(["slow church organ chorale in a minor key", "rag"])
    assert same(alone, company[1:])
