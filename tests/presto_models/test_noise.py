"""Noise that a seed determines."""

import pytest
import torch

from presto_kernels import renoise
from presto_models import initial_noise


def draw(seed, batch=1, length=37, **options):
    return initial_noise((batch, length, 3), seed=seed, **options)


def test_it_repeats_and_is_the_noise_of_offset_0():
    assert torch.equal(draw(5), draw(5))
    assert torch.equal(draw(5), renoise(torch.zeros(1, 37, 3), 1.0, seed=5, offset=0))


def test_seed_and_sample_each_matter():
    base = draw(5, batch=2)
    for other in (draw(6, batch=2), base.flip(0)):
        assert not (base == other).any()


def test_an_int_is_one_seed_for_the_batch_and_a_list_one_for_each_sample():
    assert torch.equal(draw(5), draw([5])) and torch.equal(draw(5), draw(torch.tensor([5])))
    pair = draw([5, 9], batch=2)
    assert torch.equal(pair[:1], draw(5)) and torch.equal(pair[1:], draw(9))
    assert torch.equal(draw(5, batch=3)[:2], draw(5, batch=2))


def test_a_seed_stands_for_its_64_bits():
    assert torch.equal(draw(-1), draw(2**64 - 1)) and torch.equal(draw([-1]), draw([2**64 - 1]))
    for seed in (2**64, [2**64], -(2**63) - 1, [-(2**63) - 1]):
        with pytest.raises(ValueError, match="seed must lie in"):
            draw(seed)


def test_other_dtypes_hold_the_same_noise():
    assert torch.equal(draw(5, dtype=torch.bfloat16), draw(5).bfloat16())
    torch.testing.assert_close(draw(5, dtype=torch.float64), draw(5).double(), rtol=0, atol=3e-6)
    assert draw(5, device="meta").is_meta and draw([5], device="meta").is_meta


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
