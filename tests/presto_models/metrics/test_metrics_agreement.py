"""Tags found again: told apart where they can be, and not where they cannot."""

import pytest
import torch

from presto_models.metrics.agreement import TagClassifier, tag_agreement

TAGS = ["organ", "piano", "flute"]


def tagged(num, seed, apart):
    """Embeddings whose first three dimensions say the tag, `apart` standard deviations strong, among 40 that do not."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(3, (num,), generator=generator)
    x = torch.randn(num, 40, generator=generator)
    x[torch.arange(num), which] += apart
    return 7 * x + 3, [TAGS[index] for index in which.tolist()]


def test_separable_tags_are_found():
    classifier = TagClassifier(*tagged(150, 0, apart=5))
    x, tags = tagged(90, 1, apart=5)
    found = tag_agreement(classifier.predict(x), tags)
    assert found.accuracy.value > 0.9 and found.accuracy.low > found.chance
    assert found.better_than_chance and found.p_value == pytest.approx(1 / 10_001)
    assert sum(count for heard in found.confusion.values() for count in heard.values()) == 90


def test_tags_dealt_at_random_are_not():
    p_values = []
    for seed in range(20):
        classifier = TagClassifier(*tagged(60, 10 + seed, apart=0))
        x, tags = tagged(60, 50 + seed, apart=0)
        p_values.append(tag_agreement(classifier.predict(x), tags, permutations=500, seed=seed).p_value)
    p_values = torch.tensor(p_values)
    assert (p_values < 0.05).sum() <= 4 and 0.3 < p_values.mean() < 0.7


def test_a_classifier_that_always_says_the_commonest_is_chance():
    asked = ["a"] * 80 + ["b"] * 20
    found = tag_agreement(["a"] * 100, asked)
    assert found.accuracy.value == found.chance == 0.8 and found.balanced_accuracy == pytest.approx(0.5)
    assert found.p_value == 1 and not found.better_than_chance


def test_rare_tags_weigh_as_much_as_common_ones():
    x, tags = tagged(300, 3, apart=4)
    kept = [index for index, tag in enumerate(tags) if tag != "flute" or index % 10 == 0]
    classifier = TagClassifier(x[kept], [tags[index] for index in kept])
    test_x, test_tags = tagged(200, 4, apart=4)
    flutes = [index for index, tag in enumerate(test_tags) if tag == "flute"]
    heard = classifier.predict(test_x[flutes])
    assert heard.count("flute") / len(heard) > 0.6


def test_the_interval_is_the_exact_binomial_one():
    found = tag_agreement(["a"] * 8 + ["b"] * 2, ["a"] * 9 + ["b"])
    assert (found.accuracy.value, found.clips) == (0.9, 10)
    assert found.accuracy.low == pytest.approx(0.5550, abs=1e-4) and found.accuracy.high == pytest.approx(
        0.9975, abs=1e-4
    )


def test_a_tag_nobody_asked_for_counts_as_wrong():
    assert tag_agreement(["c", "a"], ["a", "b"]).accuracy.value == 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="two different"):
        TagClassifier(torch.randn(3, 2), ["a"] * 3)
    with pytest.raises(ValueError, match="one tag each"):
        TagClassifier(torch.randn(3, 2), ["a", "b"])
    with pytest.raises(ValueError, match="predicted"):
        tag_agreement([], [])
