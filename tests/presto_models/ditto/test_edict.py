"""EDICT can be undone exactly, and its gradient is that of the walk it undid."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_controls import Kept
from small_models import make_dit, make_inputs, small_config

from presto_models.diffusion import EDM, ScheduledDenoiser, karras_sigmas, sample_ddim
from presto_models.ditto.baselines import edict as module
from presto_models.ditto.baselines.edict import Edict


def levels(steps):
    return karras_sigmas(steps, sigma_min=0.015, sigma_max=7.3)


def network(dtype, steps, *, length=11, sigmas=None):
    """(a guided network, unit noise, levels)."""
    config = small_config(num_blocks=2)
    inputs = make_inputs(config, batch=2, length=length).to(dtype)
    sigmas = levels(steps) if sigmas is None else sigmas
    edm = EDM(make_dit(config, dtype).eval().requires_grad_(False))
    noise = inputs.x.double() if dtype == torch.float64 else inputs.x.float()
    return ScheduledDenoiser(edm, inputs.conditioning, sigmas=sigmas, guidance=2.0, length=length), noise, sigmas


def unrolled(edict, noise):
    """Both chains' ends with every step kept by plain autograd."""
    start = edict.sigmas[0] * noise.to(edict.state)
    return edict.forward(start, start, called_in=noise.dtype)


def gradient(pair, noise):
    x, y = pair
    return torch.autograd.grad(x.sin().sum() + (2 * y).cos().sum(), noise)[0]


@pytest.mark.parametrize("steps", [2, 5, 20])
@pytest.mark.parametrize(
    ("model", "state", "within"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float64, 1e-12),
        (torch.bfloat16, torch.float64, 1e-12),
        (torch.float32, torch.float32, 2e-5),
        (torch.bfloat16, torch.float32, 1e-2),
    ],
    ids=str,
)
def test_the_inverse_gives_the_noise_back(steps, model, state, within):
    denoise, noise, sigmas = network(model, steps)
    edict = Edict(denoise, sigmas, state=state)
    with torch.no_grad():
        end = unrolled(edict, noise)
        assert float((end[0] - end[1]).abs().max()) > 1e-4  # two chains, not one twice
        for chain in edict.inverse(*end, called_in=noise.dtype):
            assert float((chain / sigmas[0] - noise).abs().max()) < within * float(noise.abs().max())
        other = Edict(denoise, sigmas, state=state, mix=0.9).inverse(*end, called_in=noise.dtype)
    assert float((other[0] / sigmas[0] - noise).abs().max()) > max(5 * within, 1e-2)


def test_the_last_step_ends_at_zero_and_is_undone_too():
    denoise, noise, _ = network(torch.float64, 2)
    x, y = 0.3 * noise, 0.3 * noise + 0.01 * noise.flip(1)
    sigma = levels(2)[-2]
    edict = Edict(denoise, (1.0, sigma, 0.0))
    eps = edict._eps(1, torch.float64)
    ended = module.step(eps, x, y, -sigma, 1.0, swapped=False)
    torch.testing.assert_close(ended[0], denoise(y, sigma) + x - y)
    for mix in (1.0, 0.93):
        back = module.undo(eps, *module.step(eps, x, y, -sigma, mix, swapped=False), -sigma, mix, swapped=False)
        torch.testing.assert_close(back, (x, y), rtol=0, atol=1e-13)


@settings(deadline=None, max_examples=25)
@given(steps=st.integers(2, 40), mix=st.floats(0.6, 1.0), seed=st.integers(0, 99))
def test_a_difference_between_the_chains_grows_by_the_amplification_and_no_rounding_by_more(steps, mix, seed):
    edict = Edict(lambda x, sigma: x, levels(steps), mix=mix)  # of silence eps is 0: the mixing alone
    assert math.isclose(edict.amplification, mix ** (-2 * steps))
    random = torch.Generator().manual_seed(seed)
    x, y, by = (torch.randn(1, 3, 2, generator=random, dtype=torch.float64) for _ in range(3))
    back, off = edict.inverse(x, y, called_in=x.dtype), edict.inverse(x + by, y - by, called_in=x.dtype)
    grown = (off[0] - off[1]) - (back[0] - back[1])
    torch.testing.assert_close(grown, 2 * by * edict.amplification, rtol=1e-9, atol=1e-12 * edict.amplification)
    for state in (torch.float32, torch.float64):
        start = x.to(state)
        edict = Edict(lambda x, sigma: x, levels(steps), mix=mix, state=state)
        there = edict.forward(start, start.flip(1), called_in=state)
        largest = float(start.abs().max())
        for was, now in zip((start, start.flip(1)), edict.inverse(*there, called_in=state), strict=True):
            allowed = 4 * steps * torch.finfo(state).eps * edict.amplification * largest
            assert float((was - now).abs().max()) <= allowed


@pytest.mark.parametrize("steps", [2, 7])
@pytest.mark.parametrize("mix", [0.93, 1.0])
def test_its_gradient_is_that_of_plain_autograd(steps, mix):
    denoise, noise, sigmas = network(torch.float64, steps)
    noise.requires_grad_()
    edict = Edict(denoise, sigmas, mix=mix)
    own, plain = edict.pair(noise), unrolled(edict, noise)
    torch.testing.assert_close(own, plain, rtol=0, atol=0)
    expected = gradient(plain, noise)
    torch.testing.assert_close(gradient(own, noise), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    assert float(edict.off.max()) < 1e-12
    (first,) = torch.autograd.grad(edict(noise).sin().sum(), noise)  # of the first chain alone
    (expected,) = torch.autograd.grad(unrolled(edict, noise)[0].sin().sum(), noise)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def test_its_gradient_agrees_with_finite_differences():
    denoise, noise, sigmas = network(torch.float64, 4, length=3)
    edict = Edict(denoise, sigmas)
    assert torch.autograd.gradcheck(edict.pair, (noise.requires_grad_(),), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize(("model", "within"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_its_gradient_in_the_models_own_dtypes(model, within):
    denoise, noise, sigmas = network(model, 7)
    noise.requires_grad_()
    edict = Edict(denoise, sigmas)
    expected = gradient(unrolled(edict, noise), noise)
    found = gradient(edict.pair(noise), noise)
    assert found.dtype == torch.float32
    assert float((found - expected).norm()) < within * float(expected.norm())


def test_a_backward_that_undoes_something_else_is_seen(monkeypatch):
    denoise, noise, sigmas = network(torch.float64, 5)
    noise.requires_grad_()
    edict, other = Edict(denoise, sigmas), Edict(denoise, sigmas, mix=0.9)
    pair = edict.pair(noise)
    monkeypatch.setattr(edict, "mix", other.mix)
    wrong = gradient(pair, noise)
    monkeypatch.undo()
    expected = gradient(unrolled(edict, noise), noise)
    assert float(edict.off.min()) > 0.05  # which doodl raises for
    assert float((wrong - expected).norm()) > 0.05 * float(expected.norm())


def test_memory_does_not_grow_with_the_number_of_steps():
    whole, plain = {}, {}
    for steps in (2, 4, 8):
        denoise, noise, sigmas = network(torch.float32, steps)
        noise.requires_grad_()
        edict = Edict(denoise, sigmas)
        with Kept().counting() as forward:
            loss = edict.pair(noise)[0].sum()
        # The noise, and the last pair in float64: all that the forward leaves.
        assert forward.tensors == 3 and forward.bytes == noise.numel() * (4 + 8 + 8)
        with Kept().counting() as backward:
            torch.autograd.grad(loss, noise)
        whole[steps] = forward.bytes + backward.most
        with Kept().counting() as kept:
            unrolled(edict, noise)[0].sum()
        plain[steps] = kept.bytes
    assert whole[2] == whole[4] == whole[8]
    assert plain[8] > 3.5 * plain[2] > 3.5 * 2 * whole[2]


def test_two_calls_a_step_forward_and_two_backward():
    denoise, noise, sigmas = network(torch.float32, 4)
    calls = []

    def counted(x, sigma):
        calls.append((sigma, x.dtype))
        return denoise(x, sigma)

    edict = Edict(counted, sigmas)
    pair = edict.pair(noise.requires_grad_())
    assert [sigma for sigma, _ in calls] == [s for s in sigmas[:-1] for _ in range(2)]
    assert len(calls) == edict.model_calls == 8 and {dtype for _, dtype in calls} == {torch.float32}
    gradient(pair, noise)
    assert len(calls) == 16


def test_with_many_steps_it_walks_where_ddim_does():
    def denoise(x, sigma):  # of normal data of standard deviation 1/2, bent a little
        return torch.tanh(x / (1 + 4 * sigma**2))

    noise = torch.randn(1, 50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    apart = {}
    for steps in (20, 40, 80):
        x, y = Edict(denoise, levels(steps)).pair(noise)
        ddim = sample_ddim(denoise, levels(steps)[0] * noise, levels(steps))
        apart[steps] = max(float((chain - ddim).std() / ddim.std()) for chain in (x, y))
    assert apart[80] < 0.07 and apart[80] < 0.6 * apart[40] < 0.6 * 0.6 * apart[20], apart


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmas": (1.0, 0.0)}, "at least two falling levels and then 0"),
        ({"sigmas": (1.0, 2.0, 0.0)}, "falling"),
        ({"sigmas": (2.0, 1.0, 0.5)}, "then 0"),
        ({"mix": 0.0}, "mix must be above 0"),
        ({"mix": 1.1}, "at most 1"),
        ({"state": torch.bfloat16}, "state must be"),
    ],
    ids=str,
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        Edict(lambda x, sigma: x, **({"sigmas": (2.0, 1.0, 0.0)} | changes))
