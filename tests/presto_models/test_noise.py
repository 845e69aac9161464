"""Noise that a seed determines."""

import pytest
import torch

from presto_models import seeded_noise


def draw(seed, offset=0, batch=1, length=37):
    return seeded_noise((batch, length, 3), seed=seed, offset=offset)


def test_it_repeats():
    assert torch.equal(draw(5, 2), draw(5, 2))


def test_seed_offset_and_sample_each_matter():
    base = draw(5, 2, batch=2)
    for other in (draw(6, 2, batch=2), draw(5, 3, batch=2), base.flip(0)):
        assert not (base == other).any()


def test_an_int_is_one_seed_for_the_batch_and_a_list_one_for_each_sample():
    assert torch.equal(draw(5), draw([5]))
    pair = draw([5, 9], batch=2)
    assert torch.equal(pair[:1], draw(5)) and torch.equal(pair[1:], draw(9))
    assert torch.equal(draw(5, batch=3)[:2], draw(5, batch=2))


def test_it_is_standard_normal():
    noise = draw(1, length=40001)
    assert noise.mean().abs() < 0.01
    assert noise.std().item() == pytest.approx(1, abs=0.01)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw(5)
    assert torch.equal(torch.rand(3), expected)


def test_a_wrong_number_of_seeds_is_refused():
    with pytest.raises(ValueError, match="one int per sample, 2, got 3"):
        draw([1, 2, 3], batch=2)
