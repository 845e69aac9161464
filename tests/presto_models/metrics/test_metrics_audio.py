"""Waveform distances and shaped noise."""

import pytest
import torch

from presto_models.metrics import (
    average_spectrum,
    log_spectral_distance,
    mel_distance,
    shaped_noise,
    si_sdr,
    stft_distance,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_si_sdr_is_its_formula_and_knows_no_scale():
    pytest.importorskip("torchmetrics")
    target = noise(2, 20_000)
    error = noise(2, 20_000, seed=1)
    error -= (error * target).sum(1, keepdim=True) / target.square().sum(1, keepdim=True) * target
    error *= 0.1 * target.norm(dim=1, keepdim=True) / error.norm(dim=1, keepdim=True)
    torch.testing.assert_close(si_sdr(3 * (target + error), target), torch.full((2,), 20.0), atol=1e-3, rtol=0)


def test_spectral_distances_of_a_gain_are_that_gain():
    pytest.importorskip("transformers")
    target = noise(2, 30_000)
    halved = target / 2
    torch.testing.assert_close(mel_distance(halved, target, 44_100), torch.full((2,), 6.0206), atol=1e-2, rtol=0)
    torch.testing.assert_close(log_spectral_distance(halved, target), torch.full((2,), 6.0206), atol=1e-2, rtol=0)


def test_stft_distance_grows_with_the_damage_clip_by_clip():
    pytest.importorskip("auraloss")
    target = noise(2, 20_000)
    damage = torch.tensor([[0.1], [0.5]])
    little, much = stft_distance(target + damage * noise(2, 20_000, seed=1), target)
    assert 0 < little < much
    assert (stft_distance(target, target) < 1e-5).all()


def test_silence_has_a_distance():
    pytest.importorskip("transformers")
    silent = torch.zeros(1, 5000)
    assert mel_distance(silent, silent, 44_100) == 0 and torch.isfinite(log_spectral_distance(silent, noise(1, 5000)))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="estimate and target"):
        log_spectral_distance(noise(1, 5000), noise(1, 4000))


def test_noise_has_the_spectrum_of_the_clips():
    white = noise(8, 88_200)
    clips = white.unfold(1, 6, 1).sum(2)  # a comb: 14 dB louder at the bottom than on average, silent at a third
    spectrum = average_spectrum(clips)
    made = shaped_noise(spectrum, 8, 60_000, seed=3)
    assert made.shape == (8, 60_000) and made.dtype == torch.float32
    assert float(made.square().mean()) == pytest.approx(float(clips.square().mean()), rel=0.03)

    def bands(of):
        return 10 * torch.log10(of[:2048].reshape(64, 32).mean(1))

    assert (bands(average_spectrum(made)) - bands(spectrum)).abs().max() < 1
    assert torch.equal(made, shaped_noise(spectrum, 8, 60_000, seed=3))
    assert not torch.equal(made[0], shaped_noise(spectrum, 1, 60_000, seed=4)[0])


def test_white_noise_gives_a_flat_spectrum_at_its_variance():
    spectrum = average_spectrum([2 * noise(200_000, seed=1), 2 * noise(200_000, seed=2)])
    assert float(spectrum[1:-1].mean()) == pytest.approx(4, rel=0.02)


def test_spectra_of_nothing_are_refused():
    with pytest.raises(ValueError, match="got none"):
        average_spectrum([])
    with pytest.raises(ValueError, match="4096"):
        average_spectrum([torch.zeros(100)])
    with pytest.raises(ValueError, match="spectrum"):
        shaped_noise(-torch.ones(9), 1, 100, seed=0)
