"""Ways to steer a walk while it is made, each against what its formula says."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from small_pipeline import small_pipeline
from torch import Tensor

from presto_kernels import renoise
from presto_models.diffusion import dynamic_threshold
from presto_models.ditto import Bound, Control, DittoOptions
from presto_models.ditto.baselines import (
    FreeDoMSettings,
    GuidanceGradientsSettings,
    MultiDiffusionSettings,
    freedom,
    guidance_gradients,
    multidiffusion,
    naive_masking,
)
from presto_models.ditto.baselines.guided import GuidedWalk
from presto_models.ditto.baselines.known import Known
from presto_models.ditto.setup import Setup

SECONDS, LENGTH, KNOWN = 0.3, 38, 15
ALL = (naive_masking, multidiffusion, freedom, guidance_gradients)


class BoundPaint(Bound):
    """The first latents as given."""

    name, threshold, kind, spans = "paint", None, "latents", ((0.0, 0.1),)

    def __init__(self, control, scene):
        self.weight = control.weight
        self.mask = (torch.arange(scene.length) < control.count).float()
        self.target = torch.zeros(scene.length, scene.pipeline.autoencoder.latent_channels)
        self.target[: control.count] = control.values

    def feature(self, made):
        return self.mask[:, None] * made.x

    def error(self, made):
        return (self.mask[:, None] * (made.x - self.target)).square().mean((1, 2))

    def known(self):
        return self.mask, self.target + 9 * (1 - self.mask[:, None])  # what is behind the mask counts for nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Paint(Control):
    values: Tensor
    count: int = KNOWN

    def bind(self, scene):
        return BoundPaint(self, scene)


class BoundLevel(Bound):
    """Mean of the latents, or of the audio's power: no latents are decided."""

    name, threshold, kind, spans = "level", None, "loudness", ((0.0, SECONDS),)

    def __init__(self, control, scene):
        self.weight, self.heard = control.weight, control.heard
        self.target = torch.tensor([control.wanted])

    def feature(self, made):
        return made.mono.square().mean(1, keepdim=True) if self.heard else made.x.mean((1, 2))[:, None]

    def error(self, made):
        return (self.feature(made) - self.target).square().mean(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Level(Control):
    wanted: float = 0.3
    heard: bool = False

    def bind(self, scene):
        return BoundLevel(self, scene)


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline(stereo=False)


@pytest.fixture
def paint():
    return Paint(values=torch.randn(KNOWN, 5, generator=torch.Generator().manual_seed(3)) / 2)


def options(sampler="ddim", steps=4, **changes):
    return DittoOptions(sampler=sampler, sampling_steps=steps, **changes)


def request(**changes):
    return {"prompt": "slow organ", "seconds": SECONDS, "seed": 1, "options": options()} | changes


def setup_of(pipeline, controls, **changes):
    return Setup.of(pipeline, controls, **request(**changes))


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2s", "pingpong"])
def test_masking_ends_with_the_reference_in_its_place(pipeline, paint, sampler):
    made = naive_masking(pipeline, paint, **request(options=options(sampler), num_samples=2))
    assert made.x.shape == (2, LENGTH, 5) and made.waveform.shape == (2, 1, 2400)
    assert torch.equal(made.x[:, :KNOWN], paint.values.expand(2, -1, -1))
    outcome = made.outcomes["paint"]
    assert torch.equal(outcome.error, torch.zeros(2)) and (outcome.before > 0).all() and outcome.drift.max() == 0
    assert made.steps == 0 and made.seconds_per_step is None
    assert made.model_calls == (7 if sampler in ("heun", "dpmpp_2s") else 4)


def test_masking_by_hand(pipeline, paint):
    """Two steps: what the second call sees has the reference in it, noised by the seed's noise of offset 1."""
    made = naive_masking(pipeline, paint, **request(options=options(steps=2)))
    setup = setup_of(pipeline, paint, options=options(steps=2))
    walk, known = setup.walk(setup.far), Known.of_all(setup.bound, "")
    first, second, _ = setup.far.sampling.sigmas
    with torch.no_grad():
        x = first * setup.noise()
        x0 = walk.call(x, first)
        x = x0 + second / first * (x - x0)
        noised = renoise(known.values[None], second, seed=setup.each, offset=1)
        x = torch.where(known.where, noised, x)
        x = known.put(walk.call(x, second))
    torch.testing.assert_close(made.x, x, rtol=1e-5, atol=1e-5)


def test_multidiffusion_averages(pipeline, paint):
    """One step: half the model's, half the reference; elsewhere the model's."""
    made = multidiffusion(pipeline, paint, **request(options=options(steps=1)))
    setup = setup_of(pipeline, paint, options=options(steps=1))
    with torch.no_grad():
        own = setup.walk(setup.far)(setup.noise())
    own[:, :KNOWN] = (own[:, :KNOWN] + paint.values) / 2
    torch.testing.assert_close(made.x, own)


def test_multidiffusion_stops_where_it_is_told(pipeline, paint, monkeypatch):
    """MD-50 averages after the first half of the steps; until 0 changes nothing; to the end is another result."""
    averaged = []

    def watched(x, sigma, **offsets):
        averaged.append(offsets["offset"])
        return renoise(x, sigma, **offsets)

    monkeypatch.setattr("presto_models.ditto.baselines.masking.renoise", watched)
    results = {}
    for until, expected in ((0.0, []), (0.5, [1, 2]), (1.0, [1, 2, 3, 4, 5])):
        averaged.clear()
        settings = MultiDiffusionSettings(until=until)
        made = multidiffusion(pipeline, paint, settings=settings, **request(options=options(steps=5)))
        assert averaged == expected
        results[until] = made.x
    setup = setup_of(pipeline, paint, options=options(steps=5))
    with torch.no_grad():
        assert torch.equal(results[0.0], setup.walk(setup.far)(setup.noise()))
    assert not torch.equal(results[0.5], results[0.0]) and not torch.equal(results[0.5], results[1.0])


@pytest.mark.parametrize("heard", [False, True])
def test_the_gradient_is_autograds(pipeline, heard):
    """Of the weighted errors by x, through the guided, thresholded network and the decoder; each sample's its own."""
    controls = [Level(wanted=0.3, weight=2.0), Level(wanted=0.3, heard=heard, weight=0.5)]
    settings = options(steps=3, x_max=0.7)
    setup = setup_of(pipeline, controls, num_samples=2, options=settings)
    weights = torch.tensor([[2.0], [0.5]])
    guided = GuidedWalk(setup, weights)
    x = setup.far.sampling.sigmas[1] * setup.noise()
    after, gradient = guided.step(x, 1)

    leaf = x.clone().requires_grad_()
    sigma, lower = setup.far.sampling.sigmas[1:3]
    x0 = dynamic_threshold(setup.pipeline.engine.prepare(setup.far, setup.text)(leaf, sigma), 0.7)
    power = pipeline.engine.decode(x0)[..., :2400].mean(1).square().mean(1)
    means = x0.mean((1, 2))
    total = 2.0 * (means - 0.3).square() + 0.5 * ((power if heard else means) - 0.3).square()
    total.sum().backward()
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-4, atol=1e-4 * float(leaf.grad.abs().max()))
    torch.testing.assert_close(after, (x0 + lower / sigma * (x - x0)).detach())
    assert guided.calls == 1 and not after.requires_grad


@pytest.fixture
def gaussian(pipeline, monkeypatch):
    """The ideal denoiser of latents that are independent normals: a walk on which a gradient step does what it says."""

    def prepare(plan, conditioning):
        return lambda x, sigma, *to: x * (0.25 / (0.25 + sigma**2))

    monkeypatch.setattr(pipeline.engine, "prepare", prepare)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2s", "pingpong"])
def test_freedom_lowers_the_error(pipeline, gaussian, sampler):
    settings = FreeDoMSettings(strength=0.05)
    made = freedom(
        pipeline, Level(wanted=0.5), settings=settings, **request(options=options(sampler, 6), num_samples=2)
    )
    outcome = made.outcomes["level"]
    assert (outcome.error < 0.8 * outcome.before).all()
    assert made.model_calls == (11 if sampler in ("heun", "dpmpp_2s") else 6)


def test_a_step_of_freedom_is_a_share_of_the_samplers_own_whatever_the_units(pipeline):
    walk = options(steps=1)
    plain = freedom(pipeline, Level(), settings=FreeDoMSettings(strength=0), **request(options=walk))
    setup = setup_of(pipeline, Level(), options=walk)
    start = setup.far.sampling.sigmas[0] * setup.noise()
    moved = (plain.x - start).square().mean().sqrt()
    once, heavier = (
        freedom(pipeline, Level(weight=weight), settings=FreeDoMSettings(strength=0.25), **request(options=walk))
        for weight in (1.0, 1000.0)
    )
    torch.testing.assert_close((once.x - plain.x).square().mean().sqrt(), 0.25 * moved, rtol=1e-3, atol=0)
    torch.testing.assert_close(once.x, heavier.x, rtol=1e-3, atol=1e-2)


def test_time_travel_makes_its_steps_again(pipeline, gaussian):
    control, walk = Level(wanted=0.5), options(steps=6)
    once = freedom(pipeline, control, settings=FreeDoMSettings(strength=0.1), **request(options=walk))
    settings = FreeDoMSettings(strength=0.1, repeats=3, travel=(0.5, 0.8))
    again = freedom(pipeline, control, settings=settings, **request(options=walk))
    assert [settings.times(i, 6) for i in range(6)] == [1, 1, 1, 3, 3, 1]
    assert once.model_calls == 6 and again.model_calls == 10
    assert not torch.equal(once.x, again.x)
    assert float(again.outcomes["level"].error) < float(again.outcomes["level"].before)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2s", "heun"])
def test_guidance_gradients_keep_what_is_known(pipeline, paint, sampler):
    """Exactly where the sampler ends with x0 itself; Heun's last step only up to rounding."""
    made = guidance_gradients(
        pipeline, paint, settings=GuidanceGradientsSettings(eta=0.1), **request(options=options(sampler), num_samples=2)
    )
    expected = paint.values.expand(2, -1, -1)
    torch.testing.assert_close(made.x[:, :KNOWN], expected, rtol=0, atol=1e-6 if sampler == "heun" else 0)


def test_the_consistency_step_is_in_every_call(pipeline, paint):
    """At eta 0 the walk is DDIM with the reference in every x0."""
    made = guidance_gradients(pipeline, paint, settings=GuidanceGradientsSettings(eta=0), **request())
    setup = setup_of(pipeline, paint)
    walk, known, sigmas = setup.walk(setup.far), Known.of(setup.bound), setup.far.sampling.sigmas
    x = sigmas[0] * setup.noise()
    with torch.no_grad():
        for sigma, lower in pairwise(sigmas):
            x0 = known.put(walk.call(x, sigma))
            x = x0 + lower / sigma * (x - x0)
    torch.testing.assert_close(made.x, x)


def test_a_step_of_guidance_gradients_is_eta_times_the_gradient(pipeline):
    """For every number of a sample, so that means over more of them move each as far."""
    walk = options(steps=1)
    plain, guided = (
        guidance_gradients(
            pipeline, Level(weight=3.0), settings=GuidanceGradientsSettings(eta=eta), **request(options=walk)
        )
        for eta in (0.0, 0.5)
    )
    setup = setup_of(pipeline, Level(weight=3.0), options=walk)
    _, gradient = GuidedWalk(setup, torch.tensor([[3.0]])).step(setup.far.sampling.sigmas[0] * setup.noise(), 0)
    moved = 0.5 * LENGTH * 5 * gradient
    torch.testing.assert_close(plain.x - guided.x, moved, rtol=1e-2, atol=1e-5)


def test_a_mask_and_a_feature_together(pipeline, paint):
    """Guidance gradients hold the one and follow the other."""
    settings = GuidanceGradientsSettings(eta=0.02)
    made = guidance_gradients(pipeline, [paint, Level(wanted=0.5)], settings=settings, **request())
    assert torch.equal(made.x[0, :KNOWN], paint.values)
    without = guidance_gradients(
        pipeline, [paint, Level(wanted=0.5)], settings=GuidanceGradientsSettings(eta=0), **request()
    )
    assert float(made.outcomes["level"].error) < float(without.outcomes["level"].error)


@pytest.mark.parametrize("method", ALL)
def test_seeds_decide(pipeline, paint, method):
    """The same again, and a sample the same in whatever batch it stands; another seed gives another."""
    one, again, both = (method(pipeline, paint, **request(seed=seed, **n)) for seed, n in
                        ((1, {}), (1, {}), ([0, 1], {"num_samples": 2})))  # fmt: skip
    assert torch.equal(one.x, again.x) and torch.equal(one.waveform, again.waveform)
    torch.testing.assert_close(both.x[1:], one.x, rtol=0, atol=2e-3 * float(one.x.abs().max()))
    assert not torch.equal(both.x[0, KNOWN:], both.x[1, KNOWN:])
    assert one.noise.shape == (1, LENGTH, 5) and one.seeds == (1,)


def test_known_of_several(pipeline):
    """Two masks are one; the first counts where both speak."""
    first, second = Paint(values=torch.ones(4, 5), count=4), Paint(values=torch.ones(4, 5), count=4)
    setup = setup_of(pipeline, [first, second])
    setup.bound[1].mask = torch.roll(setup.bound[1].mask, 2)
    setup.bound[1].target = 2 * torch.roll(setup.bound[1].target, 2, 0)
    known = Known.of(setup.bound)
    assert known.where[:, 0].tolist() == [True] * 6 + [False] * (LENGTH - 6)
    assert known.values[:, 0].tolist() == [1.0] * 4 + [2.0] * 2 + [0.0] * (LENGTH - 6)
    assert Known.of(setup_of(pipeline, Level()).bound) is None


@pytest.mark.parametrize("method", [naive_masking, multidiffusion])
def test_painting_refuses_what_decides_no_latents(pipeline, paint, method):
    with pytest.raises(ValueError, match="level does not"):
        method(pipeline, [paint, Level()], **request())


def test_bad_settings(pipeline, monkeypatch):
    for make, name in (
        (lambda: MultiDiffusionSettings(until=1.5), "until"),
        (lambda: FreeDoMSettings(strength=-1), "strength"),
        (lambda: FreeDoMSettings(strength=math.nan), "strength"),
        (lambda: FreeDoMSettings(repeats=0), "repeats"),
        (lambda: FreeDoMSettings(travel=(0.6, 0.3)), "travel"),
        (lambda: GuidanceGradientsSettings(eta=math.inf), "eta"),
    ):
        with pytest.raises(ValueError, match=name):
            make()
    with pytest.raises(TypeError, match="repeats"):
        FreeDoMSettings(repeats=1.5)
    monkeypatch.setattr(BoundLevel, "kind", "mood")
    with pytest.raises(ValueError, match=r"eta must be given for control level.*mood"):
        guidance_gradients(pipeline, Level(), **request())


def test_a_gradient_that_is_not_finite_changes_nothing(pipeline, monkeypatch):
    """Only in the sample it is of."""
    plain = freedom(pipeline, Level(), settings=FreeDoMSettings(strength=0), **request(num_samples=2))
    error = BoundLevel.error
    monkeypatch.setattr(BoundLevel, "error", lambda self, made: error(self, made) * torch.tensor([math.nan, 1.0]))
    for method, settings in ((freedom, FreeDoMSettings()), (guidance_gradients, GuidanceGradientsSettings(eta=0.1))):
        made = method(pipeline, Level(), settings=settings, **request(num_samples=2))
        assert torch.equal(made.x[0], plain.x[0]) and not torch.equal(made.x[1], plain.x[1])
        assert made.x.isfinite().all()
