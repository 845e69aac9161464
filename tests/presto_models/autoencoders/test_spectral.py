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
from presto_models.autoencoders.losses import AutoencoderLoss, AutoencoderLossConfig
from presto_models.checkpoint import CheckpointError, save_weights

SMALL = SpectralAutoencoderConfig(
    sample_rate=8000, latent_channels=4, n_fft=64, dim=16, mlp_dim=24, encoder_blocks=1, decoder_blocks=2, kernel_size=3
)


def small(seed=0):
    model = SpectralAutoencoder(SMALL).eval()
    randomize_weights(model, seed=seed)
    return model


@given(batch=st.integers(1, 3), samples=st.integers(1, 700), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_inverse_transform_undoes_the_transform(batch, samples, seed):
    model = SpectralAutoencoder(SMALL)
    audio = torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed))
    again = model._istft(model._stft(model.pad_to_hop(audio)))[..., :samples]
    torch.testing.assert_close(again, audio, atol=2e-6, rtol=0)


def test_a_steady_tone_stands_nearly_still_when_demodulated():
    model = SpectralAutoencoder(SpectralAutoencoderConfig(dim=8, mlp_dim=8, encoder_blocks=1, decoder_blocks=1))
    frequency = 20 * 44100 / 2048  # the centre of bin 20
    tone = torch.sin(2 * math.pi * frequency * torch.arange(20480) / 44100)[None, None]
    spectrum = model._stft(tone)[0, 4:-4, 20]  # away from the silence around it
    turn = (spectrum[1:] / spectrum[:-1]).angle().abs().max()
    assert turn < 1e-3
    off_centre = torch.sin(2 * math.pi * (frequency * 20.5 / 20) * torch.arange(20480) / 44100)[None, None]
    spectrum = model._stft(off_centre)[0, 4:-4, 20]
    turn = (spectrum[1:] / spectrum[:-1]).angle()
    torch.testing.assert_close(turn, torch.full_like(turn, math.pi / 4), atol=0.02, rtol=0)  # half a bin, a quarter hop


@given(batch=st.integers(1, 3), samples=st.integers(1, 700))
@settings(max_examples=15, deadline=None)
def test_lengths(batch, samples):
    model = small()
    latents = model.encode(torch.randn(batch, 1, samples))
    count = model.latents_for(samples)
    assert latents.shape == (batch, count, 4) and latents.dtype == torch.float32
    audio = model.decode(latents)
    assert audio.shape == (batch, 1, count * model.hop) and audio.dtype == torch.float32


def test_what_lies_beyond_the_context_does_not_reach_a_latent_s_audio():
    model, context = small(), small().decoder_context
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4 * context + 1, 4, generator=generator)
    other = latents.clone()
    middle = 2 * context
    other[:, : middle - context] = torch.randn(1, middle - context, 4, generator=generator)
    other[:, middle + context + 1 :] += 3
    here = slice(middle * model.hop, (middle + 1) * model.hop)
    torch.testing.assert_close(model.decode(latents)[..., here], model.decode(other)[..., here], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(model.decode(latents), model.decode(other), atol=1e-2)


def test_a_batch_is_its_samples():
    model = small()
    latents = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(2))
    together = model.decode(latents)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], model.decode(latents[i : i + 1]), atol=1e-5, rtol=1e-4)


def test_bf16_is_near_fp32():
    model = small()
    latents = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(3))
    full = model.decode(latents)
    half = model.to(torch.bfloat16).decode(latents)
    assert half.dtype == torch.float32
    assert (half - full).norm() < 0.2 * full.norm()  # phases turn by up to several radians: bf16 moves them


def test_gradients_reach_latents_and_audio():
    model = small()
    latents = torch.randn(1, 5, 4, requires_grad=True)
    model.decode(latents).square().mean().backward()
    assert torch.isfinite(latents.grad).all() and latents.grad.abs().max() > 0
    silence = torch.zeros(1, 1, 320, requires_grad=True)  # |S|^0.4 has no gradient at 0 unless it is kept from 0
    model.posterior(silence)[0].sum().backward()
    assert torch.isfinite(silence.grad).all()


def test_it_learns():
    torch.manual_seed(0)
    model = SpectralAutoencoder(SMALL)
    loss = AutoencoderLoss(
        AutoencoderLossConfig(mel=0.0, complex=1.0, fft_sizes=(128, 64)), sample_rate=SMALL.sample_rate
    )
    time = torch.arange(4096) / 8000
    audio = torch.stack([0.3 * torch.sin(2 * math.pi * f * time) for f in (220.0, 440.0, 990.0)])[:, None]
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    history = []
    for _ in range(60):
        mean, log_variance = model.posterior(audio)
        noise = torch.randn_like(mean)
        total, parts = loss(audio, model.decode(mean + noise * (0.5 * log_variance).exp()), mean, log_variance)
        assert set(parts) == {"stft", "complex", "kl"}
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total.detach()))
    assert sum(history[-5:]) < 0.7 * sum(history[:5])


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


@pytest.mark.parametrize("change", [{"n_fft": 66}, {"kernel_size": 4}, {"dim": 0}, {"mlp_dim": 1.5}])
def test_config_that_does_not_fit(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        SpectralAutoencoderConfig(**change)
