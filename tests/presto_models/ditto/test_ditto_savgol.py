"""Savitzky-Golay filters against scipy, and on a matrix against polynomials fitted window by window."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import savgol_coeffs, savgol_filter

from presto_models.ditto.features import SavitzkyGolay, timbre
from presto_models.ditto.features.savgol import odd_window


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(1, 70), half=st.integers(0, 20), order=st.integers(0, 4))
def test_middle_and_edges_are_scipys(frames, half, order):
    x = torch.randn(2, 3, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(frames))
    smooth = SavitzkyGolay(frames, 2 * half + 1, order, dtype=torch.float64)
    window = min(2 * half + 1, frames - 1 + frames % 2)
    assert smooth.window == window
    assert smooth(x).shape == x.shape
    theirs = savgol_filter(x.numpy(), window, min(order, window - 1), mode="interp")
    np.testing.assert_allclose(smooth(x), theirs, atol=1e-9)
    np.testing.assert_allclose(smooth.middle, savgol_coeffs(window, min(order, window - 1)), atol=1e-12)


def test_a_polynomial_of_its_order_stays_as_it_is_and_one_above_does_not():
    t = torch.linspace(-1, 1, 40, dtype=torch.float64)
    smooth = SavitzkyGolay(40, 11, 2, dtype=torch.float64)
    torch.testing.assert_close(smooth(3 - t + 2 * t**2), 3 - t + 2 * t**2)
    assert (smooth(t**4) - t**4).abs().max() > 1e-4


def test_it_is_differentiable():
    smooth = SavitzkyGolay(30, 9, 1, dtype=torch.float64)
    x = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(smooth, x)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((0, 3, 1), "frames"), ((9, 4, 1), "window"), ((9, -1, 1), "window"), ((9, 3, -1), "order")],
)
def test_bad_sizes_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        SavitzkyGolay(*arguments)


@pytest.mark.parametrize(
    ("seconds", "rate", "window"), [(1.0, 86.13, 87), (1.0, 43.07, 43), (0.1, 2.0, 1), (1.0, 4.5, 5)]
)
def test_a_window_is_the_nearest_odd_number_of_frames(seconds, rate, window):
    assert odd_window(seconds, rate) == window


def least_squares(matrix, window, order):
    """By numpy: at each place the polynomial of total degree `order` fitted to the square around it."""
    size, half = len(matrix), window // 2
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]

    def design(rows, columns):
        return np.stack([rows.ravel() ** i * columns.ravel() ** j for i, j in powers], 1)

    out = np.empty_like(matrix)
    square = np.meshgrid(np.arange(window) - half, np.arange(window) - half, indexing="ij")
    for r in range(size):
        for c in range(size):
            top, left = (int(np.clip(at - half, 0, size - window)) for at in (r, c))
            values = matrix[top : top + window, left : left + window].ravel()
            fit = np.linalg.lstsq(design(*map(np.float64, square)), values, rcond=None)[0]
            out[r, c] = (design(np.float64([r - top - half]), np.float64([c - left - half])) @ fit).item()
    return out


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("every", [1, 3])
def test_the_smoothed_self_similarity_is_a_least_squares_fit_in_two_dimensions(order, every, monkeypatch):
    monkeypatch.setattr(timbre, "ORDER", order)
    monkeypatch.setattr(timbre, "ROWS", 7 / every)  # of seven frames a second, a window of one second
    frames, rate = 22, 7.0
    similarity = timbre.SelfSimilarity(frames, rate, dtype=torch.float64)
    x = torch.randn(2, frames, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(order))
    centred = x - x.mean(1, keepdim=True)
    unit = centred / centred.norm(dim=-1, keepdim=True)
    ours = similarity(x)
    assert ours.shape == (2, similarity.rows, similarity.rows)
    for sample in range(2):
        raw = (unit[sample] @ unit[sample].T).numpy()
        np.testing.assert_allclose(ours[sample], least_squares(raw, 7, order)[::every, ::every], atol=1e-6)
