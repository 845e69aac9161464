"""Patch discriminators and their least-squares losses."""

import pytest
import torch

from presto_models.distill.discriminator import (
    SHORTEST,
    Discriminator,
    PatchHead,
    discriminator_loss,
    generator_loss,
)


@pytest.fixture(scope="module")
def hidden():
    return torch.randn(3, 96, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("length", [SHORTEST, 65, 172, 1379])
def test_a_score_every_sixteen_latents(length):
    """Any length from the shortest on; the scores of several heads stand side by side."""
    discriminator = Discriminator(8, 2, width=16, groups=4)
    scores = discriminator([torch.zeros(1, length, 8)] * 2)
    assert scores.shape == (1, 2 * (length // 16 - 1))
    assert SHORTEST // 16 - 1 >= 1


def test_samples_do_not_see_each_other(hidden):
    head = PatchHead(8, width=16, groups=4)
    torch.testing.assert_close(head(hidden), torch.cat([head(hidden[i : i + 1]) for i in range(3)]))


def test_heads_are_fp32_within_autocast(hidden):
    head = PatchHead(8, width=16, groups=4)
    with torch.autocast("cpu", torch.bfloat16):
        scores = head(hidden.bfloat16())
    assert scores.dtype == torch.float32
    assert torch.equal(scores, head(hidden.bfloat16().float()))


def test_width_must_be_a_multiple_of_groups():
    with pytest.raises(ValueError, match="width must be a multiple of groups = 32, got 100"):
        PatchHead(8, width=100)


def least_squares(loss):
    """Least squares by hand, and its only minimum: 1 for what is real and 0 for what is not."""
    real, fake = (torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    by_hand = sum((r - 1) ** 2 + f**2 for r, f in zip(real.flatten().tolist(), fake.flatten().tolist(), strict=True))
    assert float(loss(real, fake, relativistic=False)) == pytest.approx(by_hand / 20, rel=1e-5)
    assert float(loss(torch.ones(4, 5), torch.zeros(4, 5), relativistic=False)) == 0
    by_hand = sum((r - f - 1) ** 2 for r, f in zip(real.flatten().tolist(), fake.flatten().tolist(), strict=True))
    assert float(loss(real, fake, relativistic=True)) == pytest.approx(by_hand / 20, rel=1e-5)


def test_the_discriminators_loss():
    least_squares(discriminator_loss)
    with pytest.raises(AssertionError):
        least_squares(lambda real, fake, relativistic: discriminator_loss(fake, real, relativistic=relativistic))


def test_the_generators_loss_pulls_the_other_way():
    """It is least where the discriminator takes what is generated for real; relativistic, for more than real."""
    fake = torch.tensor([[0.2, -0.4]], requires_grad=True)
    loss = generator_loss(None, fake)
    assert loss.item() == pytest.approx((0.8**2 + 1.4**2) / 2)
    assert (torch.autograd.grad(loss, fake)[0] < 0).all()
    real = torch.tensor([[1.0, 0.5]])
    loss = generator_loss(real, fake)
    assert loss.item() == pytest.approx((1.8**2 + 1.9**2) / 2)
    assert (torch.autograd.grad(loss, fake)[0] < 0).all()
    assert float(generator_loss(real, real + 1)) == 0


def test_it_learns_to_tell():
    """Forty steps tell a slow wave from white noise."""
    torch.manual_seed(0)
    head = PatchHead(8, width=16, groups=4)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    wave = torch.sin(torch.arange(96)[:, None] / 5 + torch.arange(8))
    for _ in range(40):
        loss = discriminator_loss(
            head(wave + 0.3 * torch.randn(4, 96, 8)), head(torch.randn(4, 96, 8)), relativistic=False
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert head(wave[None]).mean() > head(torch.randn(4, 96, 8)).mean() + 0.5
