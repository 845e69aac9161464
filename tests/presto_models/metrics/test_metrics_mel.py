"""Resampling and mel spectrograms against librosa and scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from presto_models.metrics.mel import mel_filters, mel_spectrogram, resample


@pytest.mark.parametrize(("rate", "n_fft", "bands"), [(16_000, 512, 96), (44_100, 2048, 128)])
def test_filters_are_librosas(rate, n_fft, bands):
    pytest.importorskip("transformers")
    librosa = pytest.importorskip("librosa")
    theirs = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=bands).T
    np.testing.assert_allclose(mel_filters(rate, n_fft, bands), theirs, atol=1e-6)


def test_spectrogram_is_librosas():
    pytest.importorskip("transformers")
    librosa = pytest.importorskip("librosa")
    audio = torch.randn(2, 9001, generator=torch.Generator().manual_seed(0))
    theirs = librosa.feature.melspectrogram(y=audio.numpy(), sr=22_050, n_fft=1024, hop_length=300, n_mels=40)
    ours = mel_spectrogram(audio, 22_050, n_fft=1024, hop=300, num_mels=40)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("rate", "to"), [(44_100, 16_000), (48_000, 44_100), (16_000, 44_100), (22_050, 44_100)])
def test_a_tone_comes_out_as_that_tone(rate, to):
    def tone(at):
        return torch.sin(2 * torch.pi * 3000 * torch.arange(at, dtype=torch.float64) / at + 0.3).float()

    out = resample(tone(rate), rate, to)
    assert out.shape == (to,)
    inner = slice(to // 50, -to // 50)
    assert (out - tone(to))[inner].abs().max() < 1e-3


def test_what_does_not_fit_below_the_new_nyquist_is_gone():
    t = torch.arange(44_100, dtype=torch.float64) / 44_100
    out = resample(torch.sin(2 * torch.pi * 9000 * t), 44_100, 16_000)
    assert out[500:-500].abs().max() < 1e-3


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(1, 3000), rate=st.sampled_from([8000, 11_025, 44_100]), to=st.sampled_from([8000, 16_000]))
def test_length_and_batch(samples, rate, to):
    audio = torch.randn(2, 3, samples)
    out = resample(audio, rate, to)
    assert out.shape == (2, 3, -(-samples * to // rate))
    torch.testing.assert_close(out[1, 2], resample(audio[1, 2], rate, to), atol=1e-5, rtol=1e-4)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="to_rate"):
        resample(torch.zeros(10), 8000, 0)
    with pytest.raises(TypeError, match="int64"):
        resample(torch.zeros(10, dtype=torch.int64), 8000, 16_000)
