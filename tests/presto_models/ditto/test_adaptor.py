"""The adaptor beside a frozen model: what it adds, to whom gradients go, what it is told."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_models import make_dit, make_inputs, small_config
from small_pipeline import small_pipeline

from presto_models.checkpoint import CheckpointError, save_weights
from presto_models.diffusion import EDM, ScheduledDenoiser
from presto_models.ditto import Intensity, Melody, Structure
from presto_models.ditto.adaptor import (
    AdaptedDiT,
    Adaptor,
    AdaptorConfig,
    adaptor_guided,
    load_adaptor,
    save_adaptor,
)
from presto_models.ditto.adaptor.signals import WIDTH, at_latents, signals
from presto_models.ditto.options import DittoOptions

pytest.importorskip("transformers")  # chroma's filters

CONFIG = AdaptorConfig(in_channels=5, out_dim=48, dim=16, mlp_dim=24, num_blocks=2, kernel_size=3, noise_features=8)
RISE = [-50.0, -30.0]
OPTIONS = DittoOptions(sampling_steps=3)


def make_adaptor(*, trained=True, **changes):
    """``trained``: weights that all matter, as a fresh adaptor's do not."""
    torch.manual_seed(0)
    adaptor = Adaptor(AdaptorConfig.from_dict(CONFIG.to_dict() | changes))
    if trained:
        for weight in adaptor.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    return adaptor


def told(batch=3, length=37, seed=0):
    """Signals, and where they are given: both, loudness alone, melody in the first half."""
    random = torch.Generator().manual_seed(seed)
    loudness = -40 * torch.rand(batch, length, 1, generator=random)
    melody = torch.nn.functional.one_hot(torch.randint(12, (batch, length), generator=random), 12)
    given = torch.ones(batch, length, 2, dtype=torch.bool)
    given[1, :, 1] = given[2, :, 0] = given[2, length // 2 :, 1] = False
    return torch.cat((loudness, melody), -1), given


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


def test_a_fresh_adaptor_changes_nothing_bitwise(pipeline):
    """The network's output, guided denoising, and music through the whole sampler."""
    config, inputs = small_config(), make_inputs(small_config()).to(torch.float32)
    dit, fresh = make_dit(config, torch.float32), make_adaptor(trained=False)
    adapted = AdaptedDiT(dit, fresh, *told())
    with torch.no_grad():
        assert torch.equal(adapted(*inputs.args), dit(*inputs.args))
        assert torch.equal(dit(*inputs.args, added=torch.zeros(3, 37, 48)), dit(*inputs.args))
        guided = [
            ScheduledDenoiser(EDM(network), inputs.conditioning, sigmas=[2.0], guidance=3.0)(inputs.x, 2.0)
            for network in (dit, adapted)
        ]
    assert torch.equal(*guided)
    result = adaptor_guided(pipeline, Intensity(curve=RISE), adaptor=fresh, seconds=0.5, seed=3, options=OPTIONS)
    outcome = result.outcomes["intensity"]
    assert torch.equal(outcome.error, outcome.before) and float(outcome.before) > 0


def test_what_is_added_reaches_the_music(pipeline):
    """A trained adaptor changes it; at scale 0 it is the model's own; batches are their samples, guidance or not."""
    adaptor = make_adaptor()
    asked = {"adaptor": adaptor, "seconds": 0.5, "options": OPTIONS}
    both = [Intensity(curve=RISE), Melody(notes=[0, 4, -1, 7])]
    with_it = adaptor_guided(pipeline, both, seed=[3, 4], num_samples=2, stereo=True, **asked)
    assert with_it.waveform.shape == (2, 2, 4000) and with_it.model_calls == 3 and with_it.steps == 0
    assert set(with_it.outcomes) == {"intensity", "melody"}
    assert not torch.equal(with_it.outcomes["intensity"].error, with_it.outcomes["intensity"].before)
    alone = adaptor_guided(pipeline, both, seed=4, **asked)
    torch.testing.assert_close(alone.x, with_it.x[1:], rtol=0, atol=1e-3 * float(alone.x.abs().max()))
    off = adaptor_guided(pipeline, both, seed=4, scale=0.0, **asked)
    assert torch.equal(off.outcomes["melody"].error, off.outcomes["melody"].before)
    loudness = adaptor_guided(pipeline, both[0], seed=4, **asked)
    assert not torch.equal(loudness.x, alone.x)


def test_guidance_pulls_towards_the_controls_or_not():
    """The half without text is the model's own, or has the signals too."""
    dit, adaptor, inputs = make_dit(small_config(), torch.float32), make_adaptor(), make_inputs(small_config())
    inputs = inputs.to(torch.float32)
    text, (x, sigma) = inputs.conditioning.with_null(), (inputs.x.repeat(2, 1, 1), inputs.sigma.repeat(2))
    with torch.no_grad():
        alone = AdaptedDiT(dit, adaptor, *told())
        own = dit(x, sigma, text)
        guided = alone(x, sigma, text)
        both = AdaptedDiT(dit, adaptor, *told(), guided=False)(x, sigma, text)
        torch.testing.assert_close(guided[:3], alone(*inputs.args))
        torch.testing.assert_close(both[:3], guided[:3])
    torch.testing.assert_close(guided[3:], own[3:])
    assert all(not torch.allclose(a, b, rtol=1e-2) for a, b in zip(both, own, strict=True))


def test_gradients_reach_the_adaptor_alone():
    dit, inputs, adaptor = make_dit(small_config(), torch.float32), make_inputs(small_config()), make_adaptor()
    dit.requires_grad_(False)
    inputs = inputs.to(torch.float32)
    AdaptedDiT(dit, adaptor, *told())(*inputs.args).square().mean().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in adaptor.parameters())
    assert all(weight.grad is None for weight in dit.parameters())


def test_a_fresh_adaptor_can_begin_to_learn():
    """Its last layer is zero; the gradient to that layer is not."""
    adaptor = make_adaptor(trained=False)
    inputs = make_inputs(small_config()).to(torch.float32)
    AdaptedDiT(make_dit(small_config(), torch.float32), adaptor, *told())(*inputs.args).square().mean().backward()
    assert bool(adaptor.proj_out.weight.grad.any())


def test_what_is_not_asked_is_not_read():
    """Signals that are not given may be NaN; with none given a sample is the model's own; a given one matters."""
    adaptor, (values, given) = make_adaptor(), told()
    x, sigma = torch.randn(3, 37, 5), torch.tensor([40.0, 1.0, 0.01])
    asked = torch.cat((given[..., :1], given[..., 1:].expand(-1, -1, 12)), -1)
    with torch.no_grad():
        whole = adaptor(x, sigma, values, given)
        assert torch.equal(adaptor(x, sigma, values.masked_fill(~asked, float("nan")), given), whole)
        assert torch.equal(adaptor(x, sigma, values, torch.zeros_like(given)), torch.zeros_like(whole))
        changed = adaptor(x, sigma, torch.where(asked, values + 1, values), given)
        assert all(not torch.equal(a, b) for a, b in zip(changed, whole, strict=True))
        quieter = adaptor(x, sigma, values, given & torch.tensor([True, False]))
        assert torch.equal(quieter[1], whole[1]) and not torch.equal(quieter[0], whole[0])
        assert not bool(quieter[2].any())


def test_round_trip(tmp_path):
    adaptor = make_adaptor(controls=("melody",))
    path = save_adaptor(tmp_path / "adaptor.safetensors", adaptor.config, adaptor.state_dict(), teacher="presto-tiny")
    for place in (path, tmp_path):
        loaded = load_adaptor(place)
        assert loaded.config == adaptor.config and not loaded.training
        assert not any(weight.requires_grad for weight in loaded.parameters())
        assert all(torch.equal(value, adaptor.state_dict()[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(FileNotFoundError):
        load_adaptor(tmp_path / "none")
    bad = save_weights(tmp_path / "bad.safetensors", adaptor.state_dict(), kind="adaptor", config={"model": {}})
    with pytest.raises(CheckpointError, match="config"):
        load_adaptor(bad)
    other = CONFIG.to_dict() | {"dim": 32}
    bad = save_weights(bad, adaptor.state_dict(), kind="adaptor", config={"model": other})
    with pytest.raises(CheckpointError, match="shape"):
        load_adaptor(bad)


def test_what_cannot_be_followed_is_said(pipeline):
    adaptor = make_adaptor(controls=("loudness",))
    with pytest.raises(ValueError, match="trained for loudness; it cannot follow melody"):
        adaptor_guided(pipeline, Melody(notes=[0, 4]), adaptor=adaptor, seconds=0.5)
    with pytest.raises(ValueError, match="it cannot follow structure"):
        adaptor_guided(pipeline, Structure(form="AB"), adaptor=adaptor, seconds=3)
    with pytest.raises(ValueError, match="one control of loudness"):
        adaptor_guided(pipeline, [Intensity(curve=RISE), Intensity(curve=RISE)], adaptor=adaptor, seconds=0.5)
    with pytest.raises(ValueError, match="width 32, this one has 5 and 48"):
        adaptor_guided(pipeline, Intensity(curve=RISE), adaptor=make_adaptor(out_dim=32), seconds=0.5)
    with pytest.raises(ValueError, match="scale"):
        adaptor_guided(pipeline, Intensity(curve=RISE), adaptor=adaptor, seconds=0.5, scale=float("nan"))


def test_bad_sizes_are_said():
    for changes, said in (
        ({"controls": ()}, "at least one"),
        ({"controls": ("melody", "melody")}, "each once"),
        ({"controls": ("rhythm",)}, "rhythm"),
        ({"kernel_size": 4}, "odd"),
        ({"dim": 0}, "dim"),
    ):
        with pytest.raises(ValueError, match=said):
            AdaptorConfig.from_dict(CONFIG.to_dict() | changes)
    adaptor, (values, given) = make_adaptor(), told()
    with pytest.raises(ValueError, match="signals and given must be"):
        adaptor(torch.randn(3, 36, 5), torch.ones(3), values, given)
    inputs = make_inputs(small_config())
    with pytest.raises(ValueError, match="added must be"):
        make_dit(small_config())(*inputs.args, added=torch.zeros(3, 1, 48))


def test_signals_are_what_the_controls_hear():
    """A tone that gets louder, then silence: A in its frames, no pitch behind it, and the dB of a sine."""
    rate, hop, latents = 8000, 256, 100
    time = torch.arange(hop * latents) / rate
    audio = torch.sin(2 * torch.pi * 440 * time) * torch.where(time < 1.6, 0.25 + 0.25 * time, 0.0)
    found = signals(audio, rate, latents)
    assert found.shape == (latents, WIDTH)
    middle, level = 25, (0.25 + 0.25 * 25.5 * hop / rate) / 2**0.5
    assert abs(float(found[middle, 0]) - 20 * torch.tensor(level).log10()) < 0.2
    assert torch.equal(found[2:48, 1:], torch.nn.functional.one_hot(torch.tensor(9), 12).expand(46, 12).float())
    assert not bool(found[52:, 1:].any()) and float(found[-1, 0]) == pytest.approx(-80, abs=0.5)


@settings(max_examples=30, deadline=None)
@drawn(st.integers(1, 200), st.integers(1, 60))
def test_frames_are_averaged_over_their_latents(frames, latents):
    """Any rates: a constant stays, and a line stays within a frame and a latent of where it was."""
    line = torch.linspace(0, 1, frames)[:, None]
    found = at_latents(torch.cat((torch.full_like(line, 3.0), line), 1), latents)
    assert found.shape == (latents, 2)
    torch.testing.assert_close(found[:, 0], torch.full((latents,), 3.0))
    if frames > 1:
        expected = (torch.arange(latents) + 0.5) / latents
        assert float((found[:, 1] - expected).abs().max()) <= 1 / frames + 0.5 / latents
