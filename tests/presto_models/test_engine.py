"""The engine's stages, and what a CUDA graph may not hold."""

import itertools
import math

import pytest
import torch
from small_models import small_config
from small_pipeline import same, small_pipeline
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import presto_kernels
from presto_models import ScheduledDenoiser, initial_noise, sample_pingpong
from presto_models.autoencoders import SpectralAutoencoder, SpectralAutoencoderConfig
from presto_models.diffusion import sample_ctm
from presto_models.diffusion.sampling import SAMPLERS, Sampling
from presto_models.engine import Engine, Plan

STUDENT = small_config(takes_sigma_to=True)


def pipeline_for(sampler, **changes):
    """A model whose network is told where a jump goes, for the sampler that jumps; else a plain one."""
    if sampler != "ctm":
        return small_pipeline(**changes)
    return small_pipeline(sampler="ctm", dit=STUDENT, parameterization="ctm", **changes)


def inputs(pipeline, batch=2):
    conditioning = pipeline.conditioner(["slow organ", "a flute and a harp"][:batch], None)
    return conditioning, torch.arange(7, 7 + batch)


def plan_for(sampler, steps=4, guidance=1.0, gamma=0.0, **changes):
    sampling = Sampling(sampler, steps, guidance, gamma=gamma)
    return Plan(**({"batch": 2, "length": 13, "sampling": sampling} | changes))


@pytest.mark.parametrize(("sampler", "gamma"), [*((name, 0.0) for name in SAMPLERS), ("ctm", 0.3), ("ctm", 1.0)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_steps_in_turn_are_bitwise_the_sampler(sampler, gamma, steps):
    pipeline = pipeline_for(sampler)
    conditioning, seeds = inputs(pipeline)
    plan = plan_for(sampler, steps, guidance=1.5, gamma=gamma, schedule=pipeline.config.schedule)
    engine = pipeline.engine
    denoise = engine.prepare(plan, conditioning)
    x = start = engine.noise(plan, seeds)
    for index in range(steps):
        x = engine.step(plan, denoise, x, index, seeds)
    how = {"gamma": gamma} if sampler == "ctm" else {}
    expected = SAMPLERS[sampler](denoise, start, plan.sampling.sigmas, seed=seeds, **how)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("spacing", ["interval", "endpoint"])
def test_a_consistency_model_is_noised_from_its_lowest_level(spacing):
    sampling = Sampling("pingpong", 4, spacing=spacing, sigma_min=0.1)
    pipeline = small_pipeline(parameterization="cm", sampling=sampling)
    assert pipeline.engine.edm.boundary_sigma == 0.1
    conditioning, seeds = inputs(pipeline)
    plan = Plan(2, 13, sampling)
    denoise = pipeline.engine.prepare(plan, conditioning)
    x = start = pipeline.engine.noise(plan, seeds)
    for index in range(4):
        x = pipeline.engine.step(plan, denoise, x, index, seeds)
    assert torch.equal(x, sample_pingpong(denoise, start, sampling.sigmas, seed=seeds, sigma_min=0.1))
    assert not torch.equal(x, sample_pingpong(denoise, start, sampling.sigmas, seed=seeds))


@pytest.mark.parametrize("takes_guidance", [False, True])
def test_a_jump_is_told_both_levels_and_the_scale(takes_guidance):
    config = small_config(takes_sigma_to=True, takes_guidance=takes_guidance)
    pipeline = small_pipeline(sampler="ctm", dit=config, parameterization="ctm")
    conditioning, seeds = inputs(pipeline)
    plan = plan_for("ctm", 3, guidance=3.0, gamma=0.6, schedule=pipeline.config.schedule)
    x = start = pipeline.engine.noise(plan, seeds)

    def g(x, sigma, sigma_to):
        call = {"blocks": plan.schedule.kept(sigma), "sigma_to": sigma_to}
        if takes_guidance:
            return pipeline.engine.edm(x, sigma, conditioning, guidance=3.0, **call)
        with_text, without = (pipeline.engine.edm(x, sigma, c, **call) for c in (conditioning, conditioning.null()))
        return without + 3.0 * (with_text - without)

    denoise = pipeline.engine.prepare(plan, conditioning)
    for index in range(3):
        x = pipeline.engine.step(plan, denoise, x, index, seeds)
    same(x, sample_ctm(g, start, plan.sampling.sigmas, gamma=0.6, seed=seeds))


def test_a_jump_from_a_level_it_was_not_told_of():
    pipeline = pipeline_for("ctm")
    conditioning, seeds = inputs(pipeline)
    plan = plan_for("ctm", 2)
    denoise = pipeline.engine.prepare(plan, conditioning)
    x = pipeline.engine.noise(plan, seeds)
    for jump in ((80.0, 7.0), (3.0, 0.0), (3.0,)):
        expected = pipeline.engine.edm(x, jump[0], conditioning, sigma_to=(*jump, 0.0)[1])
        same(denoise(x, *jump), expected)
    with pytest.raises(ValueError, match="sigma_to is for a model that takes it"):
        small_pipeline().engine.prepare(plan_for("heun"), conditioning)(x, 80.0, 7.0)
    with pytest.raises(ValueError, match="one entry per sigma, 2, got 1"):
        ScheduledDenoiser(pipeline.engine.edm, conditioning, sigmas=(80.0, 7.0), sigma_to=(7.0,))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_model_calls_and_levels_are_those_made(sampler, steps):
    pipeline = pipeline_for(sampler)
    conditioning, seeds = inputs(pipeline)
    plan = plan_for(sampler, steps)
    asked = []

    def counting(x, *levels):
        asked.append(levels[0])
        return denoise(x, *levels)

    denoise = pipeline.engine.prepare(plan, conditioning)
    x = pipeline.engine.noise(plan, seeds)
    for index in range(steps):
        x = pipeline.engine.step(plan, counting, x, index, seeds)
    assert len(asked) == plan.sampling.model_calls
    assert set(asked) == set(plan.sampling.levels)


def test_the_walk_is_its_stages():
    pipeline = small_pipeline()
    conditioning, seeds = inputs(pipeline)
    plan = plan_for("pingpong", 3, stereo=True)
    engine, seen = pipeline.engine, []
    whole = engine(plan, conditioning, seeds, on_stage=seen.append)
    assert seen == 2 * ["prepare", "noise", "step", "step", "step", "decode", "stereo"]  # a CPU's samples in turn
    denoise = engine.prepare(plan, conditioning)
    x = engine.noise(plan, seeds)
    for index in range(3):
        x = engine.step(plan, denoise, x, index, seeds)
    same(whole, engine.widen(engine.decode(x)))
    assert whole.shape == (2, 2, 13 * 64) and whole.dtype == torch.float32


def test_noise_is_the_samplers_own():
    pipeline = small_pipeline()
    plan = plan_for("heun")
    noise = pipeline.engine.noise(plan, torch.tensor([7, 8]))
    assert torch.equal(noise[1:], 80.0 * initial_noise((1, 13, 5), seed=8))


def test_latents_are_brought_back_to_the_autoencoders_units():
    pipeline = small_pipeline()
    latents = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor(pipeline.config.latent_mean), torch.tensor(pipeline.config.latent_std)
    audio = pipeline.engine.decode((latents - mean) / std * 0.5)
    same(audio, pipeline.autoencoder.decode(latents))


def test_gradients_flow_through_every_stage():
    pipeline = small_pipeline()
    conditioning, seeds = inputs(pipeline)
    plan = plan_for("ddim", 3, guidance=2.0, stereo=True)
    engine = pipeline.engine
    denoise = engine.prepare(plan, conditioning)
    start = engine.noise(plan, seeds).requires_grad_()
    x = start
    for index in range(3):
        x = engine.step(plan, denoise, x, index)
    engine.widen(engine.decode(x)).square().sum().backward()
    assert start.grad is not None and start.grad.isfinite().all() and start.grad.abs().sum() > 0


def test_a_call_makes_no_graph_of_gradients():
    pipeline = small_pipeline()
    pipeline.dit.requires_grad_(True)
    assert not pipeline.engine(plan_for("heun", 2), *inputs(pipeline)).requires_grad


class NothingFromTheHost(TorchFunctionMode):
    """Refuses what a CUDA graph cannot hold: tensors made of Python numbers, and answers that Python waits for."""

    METHODS = ("new_tensor", "item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__")
    REFUSED = frozenset(
        {torch.tensor, torch.as_tensor, torch.from_numpy, torch.nonzero, torch.equal}
        | {getattr(torch.Tensor, name) for name in METHODS}
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in self.REFUSED, func
        return func(*args, **(kwargs or {}))


class OneDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        assert all(t.device.type == "meta" for t in tensors), func
        return result


def spectral():
    sizes = {"n_fft": 64, "tonal_bins": 20, "dim": 16, "mlp_dim": 24, "encoder_blocks": 1, "decoder_blocks": 1}
    return SpectralAutoencoder(SpectralAutoencoderConfig(sample_rate=8000, latent_channels=5, **sizes)).eval()


@pytest.mark.parametrize("autoencoder", ["oobleck", "spectral"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_in_the_walk_asks_the_device_or_comes_from_the_host(sampler, autoencoder):
    """On the meta device there is nothing to ask: what would wait for a GPU fails here, and so does a copy to it."""
    pipeline = pipeline_for(sampler)
    plan = plan_for(sampler, 3, guidance=2.0, gamma=0.5, schedule=pipeline.config.schedule, stereo=True)
    conditioning, seeds = inputs(pipeline)
    decoder = pipeline.autoencoder if autoencoder == "oobleck" else spectral()
    for module in (pipeline.dit, decoder, pipeline.stereo):
        module.to("meta")
    engine = Engine(
        pipeline.engine.edm,
        decoder,
        latent_mean=pipeline.config.latent_mean,
        latent_std=pipeline.config.latent_std,
        stereo=pipeline.stereo,
    )
    conditioning, seeds = conditioning.to("meta"), seeds.to("meta")
    # The kernels' own tests capture them; on meta there is only the reference.
    with presto_kernels.use_backend("reference"), torch.no_grad(), NothingFromTheHost(), OneDevice():
        assert engine.walk(plan, conditioning, seeds).shape == (2, 2, 13 * 64)


def test_the_watch_above_sees_what_it_is_for():
    """The same walk with one number read from the device, and with one tensor from the host."""
    for broken in (lambda x: x * float(x.sum()), lambda x: x * x.new_tensor([1.0]), lambda x: x + torch.tensor(1.0)):
        with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), NothingFromTheHost(), OneDevice():
            broken(torch.ones(3, device="meta"))


def test_long_pieces_are_decoded_in_chunks(monkeypatch):
    pipeline = small_pipeline()
    chunks = []

    def decode_chunked(latents, *, chunk):
        chunks.append(chunk)
        return pipeline.autoencoder.decode(latents)

    monkeypatch.setattr("presto_models.engine.LONG", 8)
    x = torch.randn(2, 9, 5)
    plain = pipeline.engine.decode(x)
    pipeline.autoencoder.decode_chunked = decode_chunked
    assert torch.equal(pipeline.engine.decode(x), plain) and chunks == [4]
    pipeline.engine.decode(x[:, :8])
    assert chunks == [4]


def test_plans_and_inputs_that_do_not_fit():
    pipeline = small_pipeline(stereo=False)
    conditioning, seeds = inputs(pipeline)
    with pytest.raises(ValueError, match="length must be at least 1"):
        plan_for("heun", length=0)
    with pytest.raises(ValueError, match="plan's 3 samples"):
        pipeline.engine(plan_for("heun", batch=3), conditioning, seeds)
    with pytest.raises(ValueError, match="int64"):
        pipeline.engine(plan_for("heun"), conditioning, seeds.int())
    with pytest.raises(ValueError, match="mono-to-stereo"):
        pipeline.engine(plan_for("heun", stereo=True), conditioning, seeds)
    with pytest.raises(ValueError, match="capture needs a CUDA device"):
        Engine(pipeline.engine.edm, pipeline.autoencoder, latent_mean=[0] * 5, latent_std=[1] * 5, capture=True)
    with pytest.raises(ValueError, match="latent channels"):
        pipeline.autoencoder.latent_channels = 6
        Engine(pipeline.engine.edm, pipeline.autoencoder, latent_mean=[0] * 5, latent_std=[1] * 5)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"sampler": "euler"}, ValueError, "one of heun, dpmpp_2s, ddim, pingpong, ctm"),
        ({"gamma": 1.1}, ValueError, "gamma must be from 0 to 1"),
        ({"gamma": float("nan")}, ValueError, "gamma must be from 0 to 1"),
        ({"gamma": "1"}, TypeError, "gamma must be a number"),
        ({"rho": 0.0}, ValueError, "rho must be"),
        ({"rho": 1e-4}, ValueError, "rho must be"),
        ({"rho": 1e30}, ValueError, "rho must be"),
        ({"rho": float("inf")}, ValueError, "rho must be"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"steps": 2.0}, TypeError, "steps must be an int"),
        ({"guidance": float("nan")}, ValueError, "guidance must be"),
        ({"guidance": -1}, ValueError, "guidance must be"),
        ({"guidance": "3"}, TypeError, "guidance must be a number"),
        ({"sigma_min": 90.0}, ValueError, "sigma_min"),
        ({"spacing": "even"}, ValueError, "spacing"),
    ],
)
def test_settings_that_do_not_fit(values, error, message):
    with pytest.raises(error, match=message):
        Sampling(**values)


def test_another_sampler_brings_its_own_spacing():
    solver = Sampling("heun", 40, 3.0)
    student = solver.changed(sampler="pingpong", steps=4)
    assert student == Sampling("pingpong", 4, 3.0, spacing="interval")
    assert student.changed(sampler="heun").spacing == "endpoint"
    assert Sampling("ddim", spacing="interval").changed(sampler="ddim", steps=3).spacing == "interval"
    assert Sampling.from_dict(student.to_dict()) == student
    assert solver.changed(sampler="ctm").spacing == "interval"


def test_a_student_is_rescheduled():
    student = Sampling("pingpong", 4, spacing="interval")
    even = student.changed(steps=2, rho=1000.0)  # nearly even in ln sigma
    assert even.sigmas == pytest.approx((80.0, math.sqrt(80.0 * 0.002), 0.0), rel=0.02)
    assert even.changed(rho=7.0, steps=4) == student


def test_plans_that_are_equal_are_one_key():
    kinds = itertools.product((1, 2), (13, 14), ("heun", "ddim"), (None, presto_kernels.LayerSchedule.full(6)))
    plans = [Plan(b, n, Sampling(s), schedule) for b, n, s, schedule in kinds]
    assert len(set(plans)) == len(plans) == len({*plans, *(Plan(**vars(p)) for p in plans)})


def test_the_denoiser_is_the_scheduled_one():
    pipeline = small_pipeline()
    conditioning, _ = inputs(pipeline)
    denoise = pipeline.engine.prepare(plan_for("heun", 3, schedule=pipeline.config.schedule), conditioning)
    assert isinstance(denoise, ScheduledDenoiser) and denoise.schedule == pipeline.config.schedule
