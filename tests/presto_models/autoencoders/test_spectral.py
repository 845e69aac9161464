"""SpectralAutoencoder: its transforms are exact, shapes and lengths are as promised, it learns, it saves and loads."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from presto_models import randomize_weights
from presto_models.autoencoders import (
    SpectralAutoencoder,
    SpectralAutoencoderConfig,
    load_autoencoder,
    save_autoencoder,
)
from presto_models.autoencoders.losses import AudioLoss, AudioLossConfig, FrameLoss, FrameLossConfig
from presto_models.autoencoders.phases import overlap_add
from presto_models.autoencoders.spectral import Frames
from presto_models.checkpoint import CheckpointError, save_weights

SMALL = SpectralAutoencoderConfig(
    sample_rate=8000,
    latent_channels=4,
    n_fft=64,
    tonal_bins=20,
    dim=16,
    mlp_dim=24,
    encoder_blocks=1,
    decoder_blocks=2,
    kernel_size=3,
)


def small(seed=0):
    model = SpectralAutoencoder(SMALL).eval()
    randomize_weights(model, seed=seed)
    return model


def tone(frequency, samples=20480):
    return (
        0.5
        * torch.sin(2 * math.pi * frequency * torch.arange(samples, dtype=torch.float64) / 44100).float()[None, None]
    )


@given(batch=st.integers(1, 3), samples=st.integers(1, 700), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_inverse_transform_undoes_the_transform(batch, samples, seed):
    model = SpectralAutoencoder(SMALL)
    audio = model.pad_to_hop(torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed)))
    margin = 3 * model.frame_hop // 2
    frames = torch.nn.functional.pad(audio[:, 0], (margin, margin)).unfold(-1, 64, 16) * torch.hann_window(64).square()
    torch.testing.assert_close(model._divided(overlap_add(frames)), audio, atol=2e-6, rtol=0)


def test_a_steady_tone_has_a_steady_advance():
    model = SpectralAutoencoder(SpectralAutoencoderConfig(dim=8, mlp_dim=8, encoder_blocks=1, decoder_blocks=1))
    for bin_number, expected in ((20.0, 0.0), (20.5, math.pi / 4), (19.75, -math.pi / 8)):
        advance = model.analyse(tone(bin_number * 44100 / 2048)).advance[0, 5:-5, 20]  # away from the silence around it
        angle = torch.atan2(advance[:, 1], advance[:, 0])
        torch.testing.assert_close(angle, torch.full_like(angle, expected), atol=0.01, rtol=0)


@pytest.mark.parametrize("frequency", [220.0, 447.3, 3001.0])
def test_a_tone_is_made_again_from_magnitude_and_advance_alone(frequency):
    model = SpectralAutoencoder(SpectralAutoencoderConfig(dim=8, mlp_dim=8, encoder_blocks=1, decoder_blocks=1))
    target = model.analyse(tone(frequency))
    again = model.analyse(model.synthesise(target))
    inner = slice(5, -5)
    error = (again.magnitude - target.magnitude)[:, inner].norm() / target.magnitude[:, inner].norm()
    assert error < 0.05
    random = Frames(target.log_magnitude, torch.zeros_like(target.advance))  # no advance is certain: phases are noise
    worse = model.analyse(model.synthesise(random))
    assert (worse.magnitude - target.magnitude)[:, inner].norm() / target.magnitude[:, inner].norm() > 0.3


def test_two_tones_keep_their_own_phases():
    model = SpectralAutoencoder(SpectralAutoencoderConfig(dim=8, mlp_dim=8, encoder_blocks=1, decoder_blocks=1))
    target = model.analyse(tone(300.0) + 0.5 * tone(1234.5))
    again = model.analyse(model.synthesise(target))
    inner = slice(5, -5)
    assert (again.magnitude - target.magnitude)[:, inner].norm() / target.magnitude[:, inner].norm() < 0.05


@given(batch=st.integers(1, 3), samples=st.integers(1, 700))
@settings(max_examples=15, deadline=None)
def test_lengths(batch, samples):
    model = small()
    latents = model.encode(torch.randn(batch, 1, samples))
    count = model.latents_for(samples)
    assert latents.shape == (batch, count, 4) and latents.dtype == torch.float32
    audio = model.decode(latents)
    assert audio.shape == (batch, 1, count * model.hop) and audio.dtype == torch.float32


def test_what_lies_beyond_the_context_does_not_reach_a_latent_s_frames():
    model, context = small(), small().decoder_context
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4 * context + 1, 4, generator=generator)
    other = latents.clone()
    middle = 2 * context
    other[:, : middle - context] = torch.randn(1, middle - context, 4, generator=generator)
    other[:, middle + context + 1 :] += 3
    here = slice(4 * middle, 4 * middle + 4)
    one, two = model.frames(latents), model.frames(other)
    torch.testing.assert_close(one.log_magnitude[:, here], two.log_magnitude[:, here], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(one.advance[:, here], two.advance[:, here], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(one.advance, two.advance, atol=1e-2)


@given(length=st.integers(1, 40), chunk=st.integers(1, 41))
@settings(max_examples=20, deadline=None)
def test_decoding_in_chunks_is_decoding(length, chunk):
    model = small()
    latents = torch.randn(2, length, 4, generator=torch.Generator().manual_seed(length))
    torch.testing.assert_close(model.decode_chunked(latents, chunk=chunk), model.decode(latents), atol=2e-4, rtol=1e-3)


def test_a_batch_is_its_samples():
    model = small()
    latents = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(2))
    together = model.decode(latents)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], model.decode(latents[i : i + 1]), atol=1e-5, rtol=1e-4)


def test_bf16_is_near_fp32():
    model = small()
    latents = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(3))
    full = model.frames(latents)
    half = model.to(torch.bfloat16).frames(latents)
    assert half.log_magnitude.dtype == torch.float32 and model.decode(latents).dtype == torch.float32
    for one, two in ((half.log_magnitude, full.log_magnitude), (half.advance, full.advance)):
        assert (one - two).norm() < 0.05 * two.norm()


def test_gradients_reach_latents_and_audio():
    model = small()
    latents = torch.randn(1, 5, 4, requires_grad=True)
    model.decode(latents).square().mean().backward()
    assert torch.isfinite(latents.grad).all() and latents.grad.abs().max() > 0
    silence = torch.zeros(1, 1, 320, requires_grad=True)  # |S| has no slope of its own at 0
    model.encode(silence).sum().backward()
    assert torch.isfinite(silence.grad).all()


def test_it_learns():
    torch.manual_seed(0)
    model = SpectralAutoencoder(SMALL)
    frame_loss = FrameLoss(FrameLossConfig(), sample_rate=SMALL.sample_rate, bins=SMALL.bins)
    audio_loss = AudioLoss(AudioLossConfig(mel=0.0, fft_sizes=(128, 64)), sample_rate=SMALL.sample_rate)
    time = torch.arange(1024) / 8000
    audio = torch.stack([0.3 * torch.sin(2 * math.pi * f * time) for f in (220.0, 440.0, 990.0)])[:, None]
    target = model.analyse(audio)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    history = []
    before, _ = audio_loss(audio, model.decode(model.encode(audio)))
    for _ in range(60):
        mean, log_variance = model.posterior(target)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        total, parts = frame_loss(target, model.frames(latents), mean, log_variance)
        assert set(parts) == {"log_magnitude", "magnitude", "convergence", "advance", "kl"}
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total.detach()))
    after, parts = audio_loss(audio, model.decode(model.encode(audio)))
    assert set(parts) == {"stft"}
    assert sum(history[-5:]) < 0.6 * sum(history[:5])
    assert after < 0.8 * before  # what the frames learn, the audio shows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded(tmp_path, dtype):
    model = small()
    save_autoencoder(tmp_path, model, dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["autoencoder.safetensors"]
    loaded = load_autoencoder(tmp_path)
    assert isinstance(loaded, SpectralAutoencoder) and loaded.config == SMALL and not loaded.training
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight.to(dtype).float(), atol=0, rtol=0)


def test_a_foreign_autoencoder_is_named(tmp_path):
    save_weights(tmp_path / "autoencoder.safetensors", {}, kind="autoencoder", config={"type": "dac"})
    with pytest.raises(CheckpointError, match="type 'dac'"):
        load_autoencoder(tmp_path)
    with pytest.raises(TypeError, match="Linear"):
        save_autoencoder(tmp_path, torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    "audio", [torch.zeros(1, 2, 64), torch.zeros(1, 64), torch.zeros(1, 1, 0), torch.zeros(1, 1, 64, dtype=torch.int64)]
)
def test_audio_that_does_not_fit(audio):
    with pytest.raises(ValueError, match="audio must be floating-point"):
        small().encode(audio)


@pytest.mark.parametrize("latents", [torch.zeros(1, 3, 5), torch.zeros(3, 4), torch.zeros(1, 0, 4)])
def test_latents_that_do_not_fit(latents):
    with pytest.raises(ValueError, match="latents must be floating-point"):
        small().decode(latents)


@pytest.mark.parametrize(
    "change", [{"n_fft": 66}, {"kernel_size": 4}, {"dim": 0}, {"mlp_dim": 1.5}, {"tonal_bins": 2000}]
)
def test_config_that_does_not_fit(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        SpectralAutoencoderConfig(**change)
