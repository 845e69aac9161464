"""The walk from noise to latents: the pipeline's own, its gradient, and what the gradient keeps."""

import pytest
import torch
from small_controls import Kept, Near
from small_walks import MAKE, SAMPLERS, options, pipeline

from presto_models.diffusion import sample_ctm, sample_ddim, sample_dpmpp_2s, sample_heun, sample_pingpong
from presto_models.ditto.setup import Setup

SAMPLED = {
    "ddim": sample_ddim,
    "heun": sample_heun,
    "dpmpp_2s": sample_dpmpp_2s,
    "pingpong": sample_pingpong,
    "ctm": sample_ctm,
}


def setup(sampler, steps=3, **changes):
    """A request on the pipeline that may be walked so."""
    made = {**MAKE, **{name: changes.pop(name) for name in ("seed", "num_samples") if name in changes}}
    return Setup.of(
        pipeline(sampler), Near(), options=options(sampler=sampler, sampling_steps=steps, **changes), **made
    )


def gradient(walk, noise):
    x = walk(noise)
    return x.detach(), torch.autograd.grad(x.sin().sum(), noise)[0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_its_gradient_is_that_of_the_sampler_with_every_activation_kept(sampler):
    here = setup(sampler)
    noise = here.noise().requires_grad_()
    sampling = here.far.sampling
    denoise = pipeline(sampler).engine.prepare(here.far, here.text)
    more = {"seed": here.each, "x_max": here.options.x_max} if sampler == "ddim" else {"seed": here.each}
    assert (here.options.x_max is not None) == (sampler == "ddim")

    def plain(noise):
        return SAMPLED[sampler](denoise, sampling.sigmas[0] * noise, sampling.sigmas, **more)

    x, expected = gradient(plain, noise)
    walks = {checkpointed: setup(sampler, checkpointed=checkpointed).walk(here.far) for checkpointed in (True, False)}
    for walk in walks.values():
        assert torch.equal(gradient(walk, noise)[0], x)
        torch.testing.assert_close(
            gradient(walk, noise)[1], expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max())
        )


@pytest.mark.parametrize("sampler", ["heun", "pingpong"])
def test_it_makes_the_pipelines_own_music(sampler):
    here = setup(sampler)
    with torch.no_grad():
        audio = here.scene.decode(here.walk(here.far)(here.noise()))
    own = pipeline(sampler)(MAKE["prompt"], seconds=0.1, seed=3, steps=3).waveform
    assert torch.equal(audio, own)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_its_gradient_keeps_is_one_tensor_of_latents_a_call_and_nothing_else(sampler):
    kept, plain = {}, {}
    for steps in (4, 8):
        here = setup(sampler, steps)
        noise = here.noise().requires_grad_()
        walk = here.walk(here.far)
        with Kept().counting() as kept[steps]:
            walk(noise)
        calls, latents = here.far.sampling.model_calls, noise.numel() * noise.element_size()
        added = steps - 1 if sampler == "pingpong" else 0  # a noise level, 8 bytes, each time noise is added
        assert kept[steps].tensors == calls + added
        assert kept[steps].bytes == calls * latents + 8 * added
        walk.checkpointed = False
        with Kept().counting() as plain[steps]:
            walk(noise)
    calls = 8 if sampler in ("heun", "dpmpp_2s") else 4  # more of them in eight steps than in four
    assert kept[8].bytes - kept[4].bytes == calls * latents + (32 if sampler == "pingpong" else 0)
    assert plain[8].bytes - plain[4].bytes > 50 * (kept[8].bytes - kept[4].bytes)


def test_noise_added_on_the_way_is_the_seeds_and_no_other():
    same, other = setup("pingpong"), setup("pingpong", seed=4)
    noise = same.noise()
    with torch.no_grad():
        x = same.walk(same.far)(noise)
        assert torch.equal(x, same.walk(same.far)(noise))
        assert not torch.allclose(x, other.walk(other.far)(noise), atol=1e-2)
        deterministic = [here.walk(here.far)(noise) for here in (setup("ddim"), setup("ddim", seed=4))]
    assert torch.equal(*deterministic)


def test_the_threshold_bounds_what_the_network_says():
    here = setup("ddim", x_max=0.3)
    with torch.no_grad():
        assert float(here.walk(here.far)(here.noise()).abs().max()) <= 0.3 * (1 + 1e-6)
    free = setup("ddim", dynamic_threshold=False)
    assert free.options.x_max is None
    with torch.no_grad():
        assert float(free.walk(free.far)(free.noise()).abs().max()) > 0.3
