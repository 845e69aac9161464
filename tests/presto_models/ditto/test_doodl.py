"""DOODL on a small pipeline."""

import pytest
import torch
from small_controls import Level, Near
from small_models import small_config
from small_pipeline import small_pipeline

from presto_models.ditto import DittoOptions
from presto_models.ditto.baselines import DoodlSettings, doodl
from presto_models.ditto.baselines.direct import DoodlSearch
from presto_models.ditto.baselines.edict import Edict
from presto_models.ditto.setup import Setup

PIPELINE = small_pipeline(dit=small_config(num_blocks=2), schedule=None)
MAKE = {"prompt": "slow organ", "seconds": 0.1, "seed": 3}
TOGETHER = DoodlSettings(mix=0.75)  # for a walk of few steps


def options(steps=4, **changes):
    return DittoOptions(**({"steps": steps, "learning_rate": 0.05, "sampling_steps": 8} | changes))


def searching(num_samples=1, **settings):
    """A search by itself, and what it starts from."""
    make = {**MAKE, "num_samples": num_samples}
    setup = Setup.of(PIPELINE, Near(), options=options(sampler="ddim", checkpointed=False), **make)
    edict = Edict(setup.walk(setup.far).call, (7.3, 2.0, 0.5, 0.1, 0.0))
    settings = DoodlSettings(**settings)
    rest = {"seeds": setup.each, "settings": settings, "steps": 3, "learning_rate": 0.05}
    return DoodlSearch(edict, setup.scene, setup.bound, setup.noise(), **rest), setup.noise()


@pytest.mark.parametrize("control", [Level(db=20.0), Near(to=0.2)], ids=lambda c: type(c).__name__)
def test_it_lowers_the_error_and_is_the_same_again(control):
    told = []
    first = doodl(PIPELINE, control, options=options(6), settings=TOGETHER, callback=told.append, **MAKE)
    outcome = next(iter(first.outcomes.values()))
    assert outcome.history.shape == (6, 1) and float(outcome.history[-1]) < 0.9 * float(outcome.history[0])
    # The music is the walk from the best noise.
    torch.testing.assert_close(outcome.error, outcome.history.amin(0), rtol=1e-4, atol=1e-6)
    assert first.waveform.shape == (1, 1, 800) and first.waveform.isfinite().all() and not outcome.drift.any()
    assert first.model_calls == 16 and first.steps == 6 and first.seconds_per_step > 0
    assert [report.step for report in told] == list(range(1, 7))
    again = doodl(PIPELINE, control, options=options(6), settings=TOGETHER, **MAKE)
    assert torch.equal(first.noise, again.noise) and torch.equal(first.waveform, again.waveform)


def test_the_authors_own_descent_lowers_it_too():
    settings = DoodlSettings(optimizer="momentum", clip=0.02, mix=0.75)
    made = doodl(PIPELINE, Near(to=0.2), options=options(6, learning_rate=2.0), settings=settings, **MAKE)
    history = made.outcomes["latents"].history
    assert float(history[-1]) < float(history[0])


def test_a_step_of_the_authors_descent():
    search, noise = searching(optimizer="momentum", clip=1e-3, momentum=0.9, renormalise=False, perturbation=0.0)
    gradient = torch.full_like(noise, 0.01)
    gradient[:, 0] = -5.0
    with torch.no_grad():
        for _ in range(2):
            search.move(gradient)
    expected = noise - 1.9 * 5e-4 - 5e-4  # b, then 0.9 b + b: 0.05 * 0.01 is below the clip
    expected[:, 0] = noise[:, 0] + 2.9 * 1e-3
    torch.testing.assert_close(search.noise.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_each_sample_keeps_the_norm_of_its_noise(optimizer):
    search, noise = searching(num_samples=2, optimizer=optimizer)
    for _ in range(3):
        search.step()
    now = search.noise.detach()
    torch.testing.assert_close(now.flatten(1).norm(dim=1), noise.flatten(1).norm(dim=1))
    assert not torch.equal(now, noise)
    free, _ = searching(optimizer=optimizer, renormalise=False)
    for _ in range(3):
        free.step()
    assert abs(float(free.noise.detach().norm() - noise[0].norm())) > 1e-3


def test_the_noise_that_is_added_is_new_at_each_step_and_a_samples_own():
    search, noise = searching(num_samples=2, perturbation=0.1, renormalise=False)
    drawn, before = [], noise
    with torch.no_grad():
        for done in range(2):
            search.done.fill_(done + 1)
            search.move(torch.zeros_like(noise))
            drawn.append((search.noise - before) / 0.1)
            before = search.noise.clone()
    assert all(0.8 < float(each.std()) < 1.2 for each in drawn)
    assert float((drawn[0] * drawn[1]).mean().abs()) < 0.2 and not torch.equal(drawn[0][0], drawn[0][1])
    assert float((drawn[0] * noise).mean().abs()) < 0.2  # nor is it the starting noise again
    alone, _ = searching(perturbation=0.1, renormalise=False)
    with torch.no_grad():
        alone.done.fill_(1)
        alone.move(torch.zeros_like(noise[:1]))
    torch.testing.assert_close(alone.noise[0], noise[0] + 0.1 * drawn[0][0])


def test_both_chains_are_heard_and_the_musics_own_error_is_told():
    both, _ = searching()
    one, _ = searching(both_chains=False)
    (errors, gradient), (same, other) = both.evaluate(), one.evaluate()
    torch.testing.assert_close(errors, same, rtol=0, atol=0)
    assert float((gradient - other).norm()) > 1e-3 * float(other.norm())
    x, y = both.walk.pair(both.noise)
    mean = (both.errors(x) + both.errors(y)).sum() / 2
    torch.testing.assert_close(gradient, torch.autograd.grad(mean, both.noise)[0], rtol=0, atol=0)


def test_it_ends_where_the_threshold_is_reached():
    control = Near(to=0.2, threshold=1e9)
    made = doodl(PIPELINE, control, options=options(5), settings=TOGETHER, num_samples=2, **MAKE)
    assert made.steps == 1 and made.steps_to_threshold == (0, 0)
    before = Setup.of(PIPELINE, control, num_samples=2, **MAKE).noise()
    assert torch.equal(made.noise, before)


def test_chains_that_fly_apart_are_told():
    with pytest.warns(UserWarning, match="EDICT's two chains ended .* apart"):
        doodl(PIPELINE, Near(), options=options(0), settings=DoodlSettings(noise_range=None), **MAKE)


@pytest.mark.filterwarnings("ignore:EDICT's two chains")
def test_a_walk_that_cannot_be_undone_is_refused(monkeypatch):
    plain = PIPELINE.engine.prepare
    calls = []

    def forgetful(*args, **kwargs):
        denoise = plain(*args, **kwargs)

        def changing(x, *levels):
            calls.append(levels)
            return (-1) ** len(calls) * denoise(x, *levels)  # on the way back never what it said before

        return changing

    monkeypatch.setattr(PIPELINE.engine, "prepare", forgetful)
    with pytest.raises(ArithmeticError, match="came back to another noise"):
        doodl(PIPELINE, Near(), options=options(2), **MAKE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": DittoOptions(sampler="heun")}, "sampler must be 'ddim'"),
        ({"options": DittoOptions(sampling_steps=1)}, "sampling_steps must be at least 2"),
        ({"options": DittoOptions(surrogate_steps=1)}, "surrogate_steps must be None"),
        ({"controls": []}, "controls must hold at least one"),
        ({"num_samples": 0}, "num_samples"),
    ],
    ids=str,
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        doodl(PIPELINE, **({"controls": Near(), **MAKE} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lbfgs"}, "optimizer must be one of adam, momentum"),
        ({"state": "bfloat16"}, "state must be one of float32, float64"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"clip": 0.0}, "clip must be"),
        ({"perturbation": -1.0}, "perturbation must be"),
        ({"mix": 0.0}, "mix must be"),
        ({"noise_range": (3.0, 0.1)}, "noise_range must be two rising"),
    ],
    ids=str,
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        DoodlSettings(**changes)
