"""Loudness, chroma and timbre against librosa, their gradients against finite differences."""

import numpy as np
import pytest
import torch
from heard import RATE, noise, tone
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, freqz, savgol_filter, sosfilt

from presto_models.ditto.features import Chroma, Loudness, SelfSimilarity, Spectrum, Timbre, chroma, loudness
from presto_models.ditto.features.frames import frame_length

pytest.importorskip("transformers")
librosa = pytest.importorskip("librosa")
pytestmark = pytest.mark.filterwarnings("ignore:n_fft=.* is too large:UserWarning")  # librosa's, of short audio
LENGTHS = [(44_100, 30_001), (8000, 12_345), (8000, 100), (22_050, 1)]


def music(samples, rate, seed=0):
    """Three partials that decay, and noise under them."""
    t = torch.arange(samples) / rate
    partials = sum(0.1 * torch.sin(2 * torch.pi * f * t) * torch.exp(-k * t) for k, f in enumerate((262, 659, 1568)))
    return partials + 0.003 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("rate", "length"), [(44_100, 2048), (48_000, 2048), (22_050, 1024), (16_000, 1024), (8000, 512)]
)
def test_frames_are_as_long_at_every_rate(rate, length):
    assert frame_length(rate) == length


@pytest.mark.parametrize(("rate", "samples"), LENGTHS)
def test_rms_is_librosas_and_its_smoothing_scipys(rate, samples):
    audio = music(samples, rate)
    heard = Loudness(samples, rate)
    rms = librosa.feature.rms(y=audio.numpy(), frame_length=heard.frame, hop_length=heard.hop)[0]
    np.testing.assert_allclose(heard.power(audio[None])[0].sqrt(), rms, rtol=1e-4, atol=1e-7)
    db = 20 * np.log10(np.maximum(rms, 1e-4))
    window = min(heard.smooth.window, len(db))
    theirs = savgol_filter(db, window, min(1, window - 1)) if window > 1 else db
    np.testing.assert_allclose(heard(audio[None])[0], theirs, atol=2e-3)


def test_a_second_is_smoothed_over_and_silence_is_at_the_floor():
    heard = Loudness(3 * 44_100, 44_100)
    assert heard.smooth.window * heard.hop / 44_100 == pytest.approx(1, abs=0.02)
    audio = torch.zeros(1, 3 * 44_100, requires_grad=True)
    db = heard(audio)
    torch.testing.assert_close(db, torch.full_like(db, loudness.FLOOR))
    (gradient,) = torch.autograd.grad(db.sum(), audio)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(("rate", "samples"), LENGTHS)
def test_power_is_librosas(rate, samples):
    audio = music(samples, rate)
    spectrum = Spectrum(samples, rate)
    theirs = np.abs(librosa.stft(audio.numpy(), n_fft=spectrum.n_fft, hop_length=spectrum.hop)) ** 2
    assert spectrum.frames == theirs.shape[1]
    np.testing.assert_allclose(spectrum(audio[None])[0].T, theirs, rtol=1e-3, atol=1e-5 * theirs.max())


def off_librosa(rate, samples=20_000):
    """How far our chroma is from librosa's behind scipy's filter, in terms of the largest."""
    audio = music(samples, rate)
    heard = Chroma(samples, rate)
    n_fft, hop = heard.spectrum.n_fft, heard.spectrum.hop
    _, gain = freqz(*butter(2, 261, "highpass", fs=rate), worN=librosa.fft_frequencies(sr=rate, n_fft=n_fft), fs=rate)
    power = np.abs(librosa.stft(audio.numpy(), n_fft=n_fft, hop_length=hop)) ** 2 * np.abs(gain[:, None]) ** 2
    theirs = librosa.feature.chroma_stft(S=power, sr=rate, n_fft=n_fft, norm=None, tuning=0.0)
    return np.abs(heard.energy(heard.spectrum(audio[None]))[0].T.numpy() - theirs).max() / theirs.max()


@pytest.mark.parametrize("rate", [44_100, 16_000, 8000])
def test_chroma_is_librosas_behind_a_butterworth(rate):
    assert off_librosa(rate) < 1e-5


@pytest.mark.parametrize("cut_off", [200.0, 330.0])
def test_another_high_pass_would_be_seen(cut_off, monkeypatch):
    monkeypatch.setattr(chroma, "HIGH_PASS", cut_off)
    assert off_librosa(44_100) > 1e-2


def test_the_gain_is_what_filtering_the_audio_does():
    """Inside frames and not at their edges: classes of audio that scipy filtered, by librosa, and of ours."""
    audio = music(44_100, 44_100)
    filtered = sosfilt(butter(2, 261, "highpass", fs=44_100, output="sos"), audio.numpy()).astype(np.float32)
    theirs = librosa.feature.chroma_stft(y=filtered, sr=44_100, n_fft=2048, hop_length=1024, norm=1, tuning=0.0)
    heard = Chroma(44_100, 44_100)
    ours = heard.log(heard.spectrum(audio[None]))[0].exp().T
    np.testing.assert_allclose(ours[:, 2:-2], theirs[:, 2:-2], atol=0.02)


def test_shares_do_not_know_how_loud_it_is_and_silence_has_no_class():
    heard = Chroma(8000, RATE)
    quiet, loud = (heard.log(heard.spectrum(tone(440, 1, level=level)[None])) for level in (0.01, 0.5))
    torch.testing.assert_close(quiet, loud, atol=0.02, rtol=0)
    torch.testing.assert_close(loud.exp().sum(-1), torch.ones(1, heard.spectrum.frames))
    assert (loud.argmax(-1) == 9).all()
    silent = torch.zeros(1, 8000, requires_grad=True)
    log = heard.log(heard.spectrum(silent))
    torch.testing.assert_close(log, torch.full_like(log, -np.log(12)))
    (gradient,) = torch.autograd.grad(log[..., 0].sum(), silent)
    assert bool(gradient.isfinite().all())


def test_the_bass_is_not_the_melody():
    heard = Chroma(44_100, 44_100)
    both = tone(440, 1, rate=44_100) + tone(65.4, 1, rate=44_100, level=0.3)  # A4 above a louder C2
    assert (heard.log(heard.spectrum(both[None]))[0, 2:-2].argmax(-1) == 9).all()


@pytest.mark.parametrize(("rate", "samples"), LENGTHS)
def test_mfcc_are_librosas(rate, samples):
    audio = music(samples, rate)
    heard = Timbre(samples, rate)
    theirs = librosa.feature.mfcc(
        y=audio.numpy(), sr=rate, n_mfcc=20, n_fft=heard.spectrum.n_fft, hop_length=heard.spectrum.hop
    )
    np.testing.assert_allclose(heard(heard.spectrum(audio[None]))[0].T, theirs[1:], atol=0.02)


def test_timbre_does_not_know_how_loud_it_is():
    heard = Timbre(8000, RATE)
    quiet, loud = (heard(heard.spectrum(noise(1, level=level)[None])) for level in (0.01, 0.1))
    torch.testing.assert_close(quiet, loud, atol=1e-2, rtol=0)


FEATURES = {
    "loudness": lambda n: Loudness(n, RATE, dtype=torch.float64),
    "chroma": lambda n: _of_power(Chroma(n, RATE, dtype=torch.float64), "log"),
    "timbre": lambda n: _of_power(Timbre(n, RATE, dtype=torch.float64), "__call__"),
    "self-similarity": lambda n: _similarity(n),
}


def _of_power(feature, method):
    return lambda audio: getattr(feature, method)(feature.spectrum(audio))


def _similarity(samples):
    timbre = Timbre(samples, RATE, dtype=torch.float64)
    similarity = SelfSimilarity(timbre.spectrum.frames, RATE / timbre.spectrum.hop, dtype=torch.float64)
    return lambda audio: similarity(timbre(timbre.spectrum(audio)))


@pytest.mark.parametrize("name", FEATURES)
def test_gradients_are_those_of_finite_differences(name):
    feature = FEATURES[name](6001)
    audio = torch.stack([music(6001, RATE, seed) for seed in (0, 1)]).double().requires_grad_()
    assert feature(audio).dtype == torch.float64
    assert torch.autograd.gradcheck(feature, audio, fast_mode=True, eps=1e-7, atol=1e-5, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 3000), name=st.sampled_from(sorted(FEATURES)))
def test_every_length_has_a_feature_and_samples_do_not_mix(samples, name):
    feature = FEATURES[name](samples)
    audio = torch.stack([music(samples, RATE, seed) for seed in (0, 1)]).double().requires_grad_()
    heard = feature(audio)
    assert bool(heard.isfinite().all())
    torch.testing.assert_close(heard[1:], feature(audio[1:]))
    (gradient,) = torch.autograd.grad(heard[0].square().sum(), audio)
    assert bool(gradient.isfinite().all())
    assert bool((gradient[1] == 0).all())
