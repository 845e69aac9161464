"""Noise levels and positions as vectors."""

import math

import pytest
import torch

from presto_models.embeddings import apply_rotary, fourier_features, noise_level, rotary_tables


def test_fourier_features_tell_noise_levels_apart():
    sigmas = torch.logspace(math.log10(0.002), math.log10(80.0), 400)
    features = fourier_features(noise_level(sigmas), 64)
    assert features.shape == (400, 64) and features.dtype == torch.float32
    distances = torch.cdist(features, features).fill_diagonal_(torch.inf)
    assert distances.min() > 0.05


def test_features_are_wide_whatever_comes_in():
    exact = fourier_features(noise_level(torch.tensor([0.5], dtype=torch.float64)), 8)
    assert exact.dtype == torch.float64
    half = fourier_features(noise_level(torch.tensor([0.5], dtype=torch.bfloat16)), 8)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=0, atol=1e-6)


def test_no_noise_has_an_embedding_too():
    assert fourier_features(noise_level(torch.zeros(1)), 8).isfinite().all()


def test_rotary_keeps_distances_and_knows_only_differences():
    cos, sin = rotary_tables(9, 6)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned_q, turned_k = (apply_rotary(x.expand(1, 1, 9, 8), cos, sin)[0, 0] for x in (q, k))
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(9))
    scores = turned_q @ turned_k.T
    for difference in range(-8, 9):
        diagonal = scores.diagonal(difference)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    assert scores[0].unique().numel() == 9


def test_rotary_is_the_formula():
    cos, sin = rotary_tables(5, 4, base=100.0)
    x = torch.randn(1, 1, 5, 7, dtype=torch.float64)
    y = apply_rotary(x, cos, sin)
    for position in range(5):
        for i, frequency in enumerate((1.0, 0.1)):
            turn = complex(math.cos(position * frequency), math.sin(position * frequency))
            z = complex(x[0, 0, position, i], x[0, 0, position, i + 2]) * turn
            assert abs(z - complex(y[0, 0, position, i], y[0, 0, position, i + 2])) < 1e-6
    assert torch.equal(y[..., 4:], x[..., 4:])


@pytest.mark.parametrize("rotary_dim", [6, 8])
def test_rotary_in_half_precision_rounds_once(rotary_dim):
    cos, sin = rotary_tables(1379, rotary_dim)
    assert cos.dtype == sin.dtype == torch.float32
    x = torch.randn(1, 2, 1379, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = apply_rotary(x, cos, sin)
    exact = apply_rotary(x.float(), cos, sin)
    assert y.dtype == torch.bfloat16 and torch.equal(y, exact.bfloat16())
