"""Classifier-free guidance and the denoiser samplers walk with."""

import pytest
import torch
from small_models import make_dit, make_inputs, small_config

from presto_kernels import LayerSchedule
from presto_models import (
    EDM,
    DiTConfig,
    ScheduledDenoiser,
    dpmpp_2s_sigmas,
    karras_sigmas,
    sample_dpmpp_2s,
    sample_heun,
    sample_pingpong,
)

CONFIG = small_config()
SIGMAS = karras_sigmas(4, spacing="interval")
CLOSE = {"rtol": 1e-8, "atol": 1e-9}


def batches(dit):
    """Lists that fill with the batch size of every call of the network, and the blocks that ran in it."""
    sizes, blocks = [], []
    dit.proj_in.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[0]))
    for block in dit.blocks:
        block.mlp.register_forward_pre_hook(lambda *_: blocks.append(1))
    return sizes, blocks


def test_guidance_is_the_formula():
    edm, inputs = EDM(make_dit(CONFIG)), make_inputs(CONFIG)
    text = inputs.conditioning
    for scale in (0.0, 0.5, 7.0):
        denoise = ScheduledDenoiser(edm, text, sigmas=SIGMAS, guidance=scale)
        conditional = edm(inputs.x, SIGMAS[1], text)
        unconditional = edm(inputs.x, SIGMAS[1], text.null())
        expected = unconditional + scale * (conditional - unconditional)
        torch.testing.assert_close(denoise(inputs.x, SIGMAS[1]), expected, **CLOSE)


def test_guidance_without_lengths_needs_no_mask():
    edm, inputs = EDM(make_dit(CONFIG)), make_inputs(CONFIG)
    text = type(inputs.conditioning)(inputs.conditioning.tokens, inputs.conditioning.pooled)
    masks = []
    edm.dit.blocks[0].cross_attention.register_forward_pre_hook(lambda _, args: masks.append(args[3]))
    guided = ScheduledDenoiser(edm, text, sigmas=SIGMAS, guidance=3.0)(inputs.x, SIGMAS[0])
    assert masks == [None]
    conditional, unconditional = (edm(inputs.x, SIGMAS[0], c) for c in (text, text.null()))
    torch.testing.assert_close(guided, unconditional + 3 * (conditional - unconditional), **CLOSE)


def test_guidance_costs_one_call_of_twice_the_batch_and_none_costs_one():
    edm, inputs = EDM(make_dit(CONFIG)), make_inputs(CONFIG)
    sizes, _ = batches(edm.dit)
    for scale in (1.0, 4.0):
        ScheduledDenoiser(edm, inputs.conditioning, sigmas=SIGMAS, guidance=scale)(inputs.x, SIGMAS[0])
    assert sizes == [3, 6]


def test_a_student_is_told_the_scale_instead():
    edm, inputs = EDM(make_dit(small_config(takes_guidance=True))), make_inputs(CONFIG)
    sizes, _ = batches(edm.dit)
    y = ScheduledDenoiser(edm, inputs.conditioning, sigmas=SIGMAS, guidance=4.0)(inputs.x, SIGMAS[0])
    assert sizes == [3]
    torch.testing.assert_close(y, edm(inputs.x, SIGMAS[0], inputs.conditioning, guidance=4.0), **CLOSE)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_walk_runs_the_blocks_of_its_schedule(guidance):
    config = DiTConfig.named("tiny")
    edm, inputs = EDM(make_dit(config, torch.float32)), make_inputs(config).to(torch.float32)
    schedule = LayerSchedule.default(8)
    denoise = ScheduledDenoiser(edm, inputs.conditioning, sigmas=SIGMAS, schedule=schedule, guidance=guidance)
    sizes, blocks = batches(edm.dit)
    with torch.no_grad():
        sample_pingpong(denoise, SIGMAS[0] * inputs.x, SIGMAS, seed=0)
    assert len(sizes) == 4 and len(blocks) == 3 + 5 + 6 + 7


@pytest.mark.parametrize("length", [None, 37])
def test_a_level_it_was_not_told_of_is_served_too(length):
    edm, inputs = EDM(make_dit(CONFIG)), make_inputs(CONFIG)
    schedule = LayerSchedule.default(6)
    x = 80.0 * inputs.x
    sigmas = karras_sigmas(3)
    walks = [
        sample_dpmpp_2s(
            ScheduledDenoiser(edm, inputs.conditioning, sigmas=told, schedule=schedule, guidance=2.0, length=length),
            x,
            sigmas,
        )
        for told in (sigmas, dpmpp_2s_sigmas(sigmas))
    ]
    torch.testing.assert_close(*walks, **CLOSE)


def test_a_walk_is_the_walk_without_anything_precomputed():
    edm, inputs = EDM(make_dit(CONFIG)), make_inputs(CONFIG)
    schedule = LayerSchedule.default(6)
    denoise = ScheduledDenoiser(edm, inputs.conditioning, sigmas=SIGMAS, schedule=schedule)
    x = 80.0 * inputs.x

    def plain(x, sigma):
        return edm(x, sigma, inputs.conditioning, blocks=schedule.kept(sigma))

    torch.testing.assert_close(sample_heun(denoise, x, SIGMAS), sample_heun(plain, x, SIGMAS), **CLOSE)


def test_gradients_reach_the_starting_noise():
    edm, inputs = EDM(make_dit(CONFIG)), make_inputs(CONFIG)
    denoise = ScheduledDenoiser(edm, inputs.conditioning, sigmas=SIGMAS, guidance=2.0)
    z = inputs.x.clone().requires_grad_()
    direction = torch.randn_like(z)
    for _ in range(2):  # twice: a second step of the same optimisation uses the same cache
        (gradient,) = torch.autograd.grad(sample_pingpong(denoise, 80.0 * z, SIGMAS, seed=0).sum(), z)
    step = 1e-6
    ahead, behind = (
        sample_pingpong(denoise, 80.0 * (z + sign * step * direction), SIGMAS, seed=0).sum() for sign in (1, -1)
    )
    assert (gradient * direction).sum().item() == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-4)


def test_a_schedule_of_another_model_is_refused():
    edm, inputs = EDM(make_dit(CONFIG)), make_inputs(CONFIG)
    for schedule in (LayerSchedule.default(8), LayerSchedule.default(6, keep_last=2)):
        with pytest.raises(ValueError, match="6 blocks and keep_last 1"):
            ScheduledDenoiser(edm, inputs.conditioning, sigmas=SIGMAS, schedule=schedule)
