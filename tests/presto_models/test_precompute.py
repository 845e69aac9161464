"""What is computed before the first step is what forward would have computed."""

import dataclasses

import pytest
import torch
from small_models import make_dit, make_inputs, reference_of, small_config

CONFIG = small_config()
SIGMAS, BUDGETS = (20.0, 2.5, 0.25, 0.03125), (2, 4, 6, 5)


def without(dit, inputs, step, **extras):
    sigma = torch.full_like(inputs.sigma, step.sigma)
    return dit(inputs.x, sigma, inputs.conditioning, blocks=step.blocks, **extras)


@pytest.mark.parametrize("length", [None, 37])
@pytest.mark.parametrize("pooled_dim", [0, 14])
def test_every_step_is_the_step_without_it(pooled_dim, length):
    config = small_config(pooled_dim=pooled_dim)
    dit, inputs = make_dit(config), make_inputs(config)
    precomputed = dit.precompute(inputs.conditioning, SIGMAS, BUDGETS, length=length)
    assert len(precomputed) == 4
    for i, (sigma, budget) in enumerate(zip(SIGMAS, BUDGETS, strict=True)):
        step = precomputed.step(i)
        assert step.sigma == sigma and step.blocks == (*range(budget - 1), 5)
        expected = without(dit, inputs, step)
        for model in (dit, reference_of(dit)):
            y = model(*inputs.args, precomputed=step)
            torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)


def test_a_students_conditions_are_in_it():
    config = small_config(takes_sigma_to=True, takes_guidance=True)
    dit, inputs = make_dit(config), make_inputs(config)
    precomputed = dit.precompute(inputs.conditioning, SIGMAS[:2], sigma_to=(2.5, 0.0), guidance=3.0)
    for i, sigma_to in enumerate((2.5, 0.0)):
        extras = {"sigma_to": torch.full_like(inputs.sigma, sigma_to), "guidance": torch.full_like(inputs.sigma, 3.0)}
        expected = without(dit, inputs, precomputed.step(i), **extras)
        y = dit(*inputs.args, precomputed=precomputed.step(i))
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)


def test_in_bf16_text_is_bitwise_and_the_rest_within_rounding():
    dit, inputs = make_dit(CONFIG, torch.bfloat16), make_inputs(CONFIG).to(torch.bfloat16)
    inputs = dataclasses.replace(inputs, sigma=inputs.sigma.float())
    precomputed = dit.precompute(inputs.conditioning, SIGMAS)
    seen = []
    for block in dit.blocks:
        block.cross_attention.register_forward_pre_hook(lambda _, args: seen.append(args[1:3]))
    expected = without(dit, inputs, precomputed.step(0))
    for (k, v), (k_cached, v_cached) in zip(seen, precomputed.text.keys_values, strict=True):
        assert torch.equal(k, k_cached) and torch.equal(v, v_cached)
    y = dit(*inputs.args, precomputed=precomputed.step(0))
    torch.testing.assert_close(y, expected, rtol=0, atol=2**-5 * expected.abs().max().item())


def test_the_text_of_an_earlier_one_is_used_again():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    text = dit.precompute(inputs.conditioning, (1.0,)).text
    calls = []
    dit.blocks[0].cross_attention.kv.register_forward_hook(lambda *_: calls.append(1))
    again = dit.precompute(inputs.conditioning, (0.5,), (4,), text=text)
    assert not calls and again.text is text
    step = again.step(0)
    y = dit(*inputs.args, precomputed=step)
    torch.testing.assert_close(y, without(dit, inputs, step), rtol=1e-9, atol=1e-11)


def test_gradients_reach_x_alone():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    precomputed = dit.precompute(inputs.conditioning, SIGMAS)
    cached = [*precomputed.step(1).modulation, *(t for pair in precomputed.text.keys_values for t in pair)]
    assert not any(t.requires_grad for t in cached)
    inputs.x.requires_grad_()
    (y,) = torch.autograd.grad(dit(*inputs.args, precomputed=precomputed.step(1)).sum(), inputs.x)
    (expected,) = torch.autograd.grad(without(dit, inputs, precomputed.step(1)).sum(), inputs.x)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)


def test_nothing_stays_in_the_module():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    before = set(dit.state_dict()), set(vars(dit)), [set(vars(m)) for m in dit.modules()]
    dit(*inputs.args, precomputed=dit.precompute(inputs.conditioning, SIGMAS, length=37).step(0))
    assert (set(dit.state_dict()), set(vars(dit)), [set(vars(m)) for m in dit.modules()]) == before
    assert not list(dit.buffers())


def test_what_does_not_fit_is_refused():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    text = inputs.conditioning
    for arguments, message in (
        (((),), "sigmas must be positive"),
        (((1.0, 0.0),), "sigmas must be positive"),
        (((1.0,), (3, 4)), "budgets must have one entry"),
        (((1.0,), (7,)), "budgets must be from"),
        (((1.0,), (0,)), "budgets must be from"),
    ):
        with pytest.raises(ValueError, match=message):
            dit.precompute(text, *arguments)
    step = dit.precompute(text, (1.0,), length=36).step(0)
    with pytest.raises(ValueError, match="length 36"):
        dit(*inputs.args, precomputed=step)
    with pytest.raises(ValueError, match="exclude each other"):
        dit(*inputs.args, precomputed=step, blocks=(0, 5))
