"""Distances between sets: against closed forms, unbiased, and with intervals that cover."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from presto_models.metrics import (
    MMD,
    EmbeddedClips,
    GaussianKernel,
    Interval,
    PolynomialKernel,
    density_and_coverage,
    frechet_audio_distance,
    frechet_distance,
    median_bandwidth,
    mmd2,
)
from presto_models.metrics.compare import compare
from presto_models.metrics.frechet import gaussian


def normal(*shape, seed=0, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clips(num, patches, dimension, *, seed, shift=0.0, spread=1.0):
    """Clips whose patches are alike: a centre for each clip and a little noise for each patch."""
    return normal(num, 1, dimension, seed=seed, shift=shift) + 0.3 * spread * normal(
        num, patches, dimension, seed=seed + 1
    )


def test_frechet_of_axis_aligned_gaussians_is_the_closed_form():
    mean1, mean2 = normal(7, seed=1), normal(7, seed=2)
    spread1, spread2 = normal(7, seed=3).abs() + 0.1, normal(7, seed=4).abs() + 0.1
    found = frechet_distance(mean1, spread1.square().diag(), mean2, spread2.square().diag())
    torch.testing.assert_close(found, (mean1 - mean2).square().sum() + (spread1 - spread2).square().sum())


def test_frechet_is_scipys():
    (mean1, cov1), (mean2, cov2) = (
        gaussian(normal(50, 12, seed=1)),
        gaussian(normal(80, 12, seed=2) @ normal(12, 12, seed=3)),
    )
    root = sqrtm((cov1 @ cov2).numpy()).real
    theirs = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * np.trace(root)
    assert float(frechet_distance(mean1, cov1, mean2, cov2)) == pytest.approx(float(theirs), rel=1e-9)


def test_frechet_of_singular_covariances_and_of_itself():
    flat = torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    other = torch.diag(torch.tensor([0.0, 4.0, 0.0], dtype=torch.float64))
    zero = torch.zeros(3)
    assert float(frechet_distance(zero, flat, zero, other)) == pytest.approx(5.0)
    mean, cov = gaussian(1000 * normal(300, 100))
    assert float(frechet_distance(mean, cov, mean, cov)) < 1e-6 * float(cov.trace())


def test_counted_embeddings_are_repeated_embeddings():
    x, counts = normal(5, 3), torch.tensor([2, 0, 1, 3, 1])
    for found, wanted in zip(gaussian(x, counts), gaussian(x.repeat_interleave(counts, 0)), strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gaussian(x)[1], torch.cov(x.T))


def test_too_few_embeddings_are_refused_unless_shrunk():
    x, y = normal(10, 2, 30), normal(20, 2, 30, seed=1)
    with pytest.raises(ValueError, match="x has 20 embeddings of 30 dimensions"):
        frechet_audio_distance(x, y)
    assert np.isfinite(frechet_audio_distance(x, y, shrinkage=0.1))
    with pytest.raises(ValueError, match="shrinkage"):
        frechet_audio_distance(x, y, shrinkage=1.5)


def test_frechet_names_bad_covariances():
    zero, eye = torch.zeros(2), torch.eye(2)
    for bad in (-eye, torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.full((2, 2), torch.nan)):
        with pytest.raises(ValueError, match="cov2"):
            frechet_distance(zero, eye, zero, bad)
    with pytest.raises(ValueError, match="mean2"):
        frechet_distance(zero, eye, torch.zeros(3), eye)


def mean_mmd(kernel, shift=0.0, trials=100):
    """The mean over independent small samples, and its standard error."""
    values = torch.tensor(
        [
            mmd2(clips(12, 4, 5, seed=100 + 4 * i), clips(15, 4, 5, seed=102 + 4 * i, shift=shift), kernel)
            for i in range(trials)
        ]
    )
    return float(values.mean()), float(values.std() / trials**0.5)


@pytest.mark.parametrize("kernel", [None, PolynomialKernel()])
def test_mmd_is_zero_in_the_mean_for_one_distribution_though_patches_are_alike(kernel):
    mean, error = mean_mmd(kernel)
    assert abs(mean) < 3 * error


def test_mmd_is_its_closed_form_in_the_mean_between_two_distributions():
    mean, error = mean_mmd(GaussianKernel(2.5), shift=0.7)
    truth = true_mmd(0.7, 5, 2.5)
    assert abs(mean - truth) < 3 * error < truth


def test_mmd_of_single_embeddings_is_the_textbook_sum():
    x, y, kernel = normal(6, 3, seed=1), normal(9, 3, seed=2, shift=0.5), GaussianKernel(1.3)

    def k(a, b):
        return torch.exp(-(a[:, None] - b[None]).square().sum(-1) / (2 * 1.3**2))

    xx, yy = k(x, x).fill_diagonal_(0).sum() / 30, k(y, y).fill_diagonal_(0).sum() / 72
    assert mmd2(x, y, kernel) == pytest.approx(float(xx + yy - 2 * k(x, y).mean()), abs=1e-12)


def test_mmd_of_copies_does_not_count_a_piece_with_itself():
    x = clips(40, 3, 5, seed=1)
    pieces = [f"piece {index // 2}" for index in range(40)]
    copies = MMD(EmbeddedClips.of(x, pieces), EmbeddedClips.of(x.clone(), pieces), GaussianKernel(2.0))
    assert abs(copies.value()) < 1e-12


def test_mmd_refuses_what_it_cannot_pair():
    with pytest.raises(ValueError, match="two pieces"):
        mmd2(EmbeddedClips.of(normal(4, 3), ["a"] * 4), normal(4, 3))
    with pytest.raises(ValueError, match="dimensions"):
        mmd2(normal(4, 3), normal(4, 2))
    with pytest.raises(ValueError, match="bandwidth"):
        GaussianKernel(0.0)


def test_median_bandwidth_is_between_clips():
    x = normal(30, 1, 4, seed=1).expand(-1, 50, -1)  # patches of a clip are the same: their distance is 0
    assert median_bandwidth(x, most=10_000) == pytest.approx(float(torch.pdist(x[:, 0]).median()), rel=0.02)


def test_resamples_keep_pieces_and_pairs_together():
    pieces = ["a", "b", "a", "c"]
    one, other = (EmbeddedClips.of(normal(4, 2, seed=seed), pieces) for seed in (1, 2))
    counts = one.resamples(50, seed=3)
    assert torch.equal(counts, other.resamples(50, seed=3)) and torch.equal(counts[:, 0], counts[:, 2])
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all() and len(counts.unique(dim=0)) > 5


def test_intervals_cover_though_patches_are_alike():
    """About 95 % of 95 % intervals hold the true MMD²; of intervals over patches far fewer do."""
    kernel, trials = GaussianKernel(3.0), 100
    held = {"clips": 0, "patches": 0}
    for trial in range(trials):
        # Apart on purpose: at distance 0 the bootstrap of a U-statistic degenerates.
        x, y = clips(30, 6, 4, seed=1000 + 10 * trial, shift=0.8), clips(30, 6, 4, seed=1005 + 10 * trial)
        truth = true_mmd(0.8, 4, kernel.bandwidth)
        for name, (a, b) in {"clips": (x, y), "patches": (x.flatten(0, 1), y.flatten(0, 1))}.items():
            a, b = EmbeddedClips.of(a), EmbeddedClips.of(b)
            mmd = MMD(a, b, kernel)
            draws = mmd.resamples(a.resamples(200, trial), b.resamples(200, trial + 5000))
            interval = Interval.around(mmd.value(), draws)
            held[name] += interval.low <= truth <= interval.high
    assert held["clips"] / trials > 0.88
    assert held["patches"] / trials < 0.8


def true_mmd(shift, dimension, bandwidth):
    """Between N(0, v I) and N(shift, v I), v = 1.09: E k of a Gaussian difference in closed form."""
    v = 2 * (1 + 0.3**2)
    share = (bandwidth**2 / (bandwidth**2 + v)) ** (dimension / 2)
    return float(2 * share * (1 - np.exp(-dimension * shift**2 / (2 * (bandwidth**2 + v)))))


def test_density_and_coverage():
    real, same = normal(300, 4, seed=1), normal(300, 4, seed=2)
    alike = density_and_coverage(real, same)
    assert alike.coverage == pytest.approx(1 - 2**-5, abs=0.04) and alike.density == pytest.approx(1, abs=0.15)
    assert min(alike.precision, alike.recall) > 0.85
    narrow = density_and_coverage(real, 0.05 * same)
    assert narrow.precision == 1 and max(narrow.recall, narrow.coverage) < 0.2
    assert density_and_coverage(real, same + 100) == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="neighbours"):
        density_and_coverage(real[:5], same)


def test_compare_puts_a_set_between_floor_and_ceiling():
    reference = EmbeddedClips.of(clips(50, 4, 6, seed=1))
    sets = {
        "other": EmbeddedClips.of(clips(50, 4, 6, seed=3)),
        "near": EmbeddedClips.of(clips(50, 4, 6, seed=5, shift=0.8)),
        "far": EmbeddedClips.of(clips(50, 4, 6, seed=7, shift=3.0)),
        "copy": EmbeddedClips(reference.embeddings + 1e-3, reference.pieces),
    }
    found = compare(reference, sets, floor="other", ceiling="far", of="near", resamples=100, seed=1)
    assert set(found) == {"fad", "mmd", "kid"}
    for distances in found.values():
        at = distances.to_reference
        assert at["other"].value < at["near"].value < at["far"].value
        assert all(interval.low <= interval.value <= interval.high for interval in at.values())
        assert 0 < distances.ratio.value < 0.5 and distances.ratio.low < distances.ratio.value < distances.ratio.high
        assert abs(at["copy"].value) < 1e-3 and at["copy"].high - at["copy"].low < 1e-2
    assert compare(reference, sets, floor="none", ceiling="far", of="near", resamples=2)["fad"].ratio is None


def test_compare_wants_equal_counts():
    with pytest.raises(ValueError, match="equally many clips"):
        compare(EmbeddedClips.of(normal(20, 4)), {"a": EmbeddedClips.of(normal(21, 4))}, floor="a", ceiling="a", of="a")


def test_embedded_clips_name_what_is_wrong():
    with pytest.raises(ValueError, match="finite"):
        EmbeddedClips.of(torch.full((2, 3), torch.nan))
    with pytest.raises(ValueError, match="pieces"):
        EmbeddedClips.of(normal(3, 2), ["a"])
    with pytest.raises(ValueError, match="patches"):
        EmbeddedClips.of(normal(3))
