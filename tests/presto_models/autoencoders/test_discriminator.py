"""The discriminator learns to tell two sounds apart, and its losses move the sound that is judged."""

import torch

from presto_models.autoencoders.discriminator import (
    DiscriminatorConfig,
    SpectralDiscriminator,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)

CONFIG = DiscriminatorConfig(fft_sizes=(128, 64), channels=8)


def test_it_learns_to_tell_noise_from_a_tone():
    torch.manual_seed(0)
    discriminator = SpectralDiscriminator(CONFIG)
    optimizer = torch.optim.AdamW(discriminator.parameters(), 3e-3)
    tone = 0.3 * torch.sin(0.3 * torch.arange(1024.0)).expand(4, 1, -1)
    first = last = 0.0
    for step in range(40):
        noise = 0.2 * torch.randn(4, 1, 1024)
        loss = discriminator_loss(discriminator(tone), discriminator(noise))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (float(loss.detach()) if step == 0 else first), float(loss.detach())
    assert last < 0.3 * first


def test_gradients_reach_the_sound_and_feature_loss_is_zero_for_the_same_sound():
    torch.manual_seed(0)
    discriminator = SpectralDiscriminator(CONFIG)
    real = discriminator(0.1 * torch.randn(2, 1, 777))
    assert float(feature_loss(real, real).detach()) == 0.0
    sound = torch.zeros(2, 1, 777, requires_grad=True)  # silence: where a compressed magnitude has no slope of its own
    fake = discriminator(sound)
    (adversarial_loss(fake) + feature_loss(real, fake)).backward()
    assert torch.isfinite(sound.grad).all()


def test_scores_have_one_entry_a_patch():
    scores, features = SpectralDiscriminator(CONFIG)(torch.zeros(3, 2, 640))[0]
    assert scores.shape[0] == 6 and scores.shape[1] == 1 and len(features) == 4
