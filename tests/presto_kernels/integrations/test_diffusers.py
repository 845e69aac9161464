"""diffusers' transformers on our ops: as right as they were, and otherwise the models that they were."""

import copy
import dataclasses
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

pytest.importorskip("diffusers", "0.42")

from diffusers_models import (
    ACE_STEP,
    BASIC,
    DIT,
    FLUX,
    MODELS,
    SD3,
    STABLE_AUDIO,
    STABLE_AUDIO_3,
    Model,
    TrueDouble,
    cast,
    output,
    passed_on,
)

from presto_kernels.integrations.prompt import prompt_cache
from presto_kernels.integrations.swapping import accelerate, find, restore
from presto_kernels.testing.tolerance import check, within

NOT_DIFFERENTIATED = ("timestep", "timestep_r")
every_model = pytest.mark.parametrize("model", MODELS, ids=str)
by_prompt = pytest.mark.parametrize("model", [STABLE_AUDIO, STABLE_AUDIO_3, ACE_STEP], ids=str)


def results(model: nn.Module, inputs, upstream: Tensor) -> dict[str, Tensor | None]:
    """The output, and the gradients of inputs and parameters."""
    inputs = {
        name: value.clone().requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point() and name not in NOT_DIFFERENTIATED
        else value
        for name, value in inputs.items()
    }
    model.zero_grad()
    made = output(model, inputs)
    made.backward(upstream.to(made.dtype))
    of_inputs = {n: v.grad for n, v in inputs.items() if isinstance(v, Tensor) and v.requires_grad}
    return {"output": made.detach(), **of_inputs, **{n: p.grad for n, p in model.named_parameters()}}


def three_ways(model: Model, dtype: torch.dtype, inputs) -> tuple[nn.Module, list[dict[str, Tensor | None]]]:
    """The accelerated model, and results: untouched in float64, untouched, accelerated."""
    plain = model.seeded(dtype)
    fused = accelerate(copy.deepcopy(plain))
    with torch.no_grad():
        upstream = torch.randn(output(plain, inputs).shape, dtype=dtype)
    with TrueDouble():
        oracle = results(copy.deepcopy(plain).double(), cast(inputs, torch.float64), upstream)
    return fused, [oracle, results(plain, inputs, upstream), results(fused, inputs, upstream)]


def check_within(dtype: torch.dtype, oracle, plain, fused, *, times: float = 1) -> None:
    """``times``: of what is allowed, where Hypothesis looks for the one small tensor whose roundings add up badly."""
    assert {n for n, t in fused.items() if t is None} == {n for n, t in plain.items() if t is None}
    assert {n: t.dtype for n, t in fused.items() if t is not None} == {
        n: t.dtype for n, t in plain.items() if t is not None
    }
    eps = torch.finfo(dtype).eps
    there = [name for name, t in oracle.items() if t is not None]
    outcomes = [within(name, fused[name], oracle[name], plain[name], rowwise=False, eps=eps) for name in there]
    check([dataclasses.replace(outcome, ratio=outcome.ratio / times) for outcome in outcomes])


# The same output -----------------------------------------------------------------------------------------------------


@pytest.mark.covers("output")
@every_model
def test_float64_is_the_same_formula(model):
    plain, inputs = model.seeded(torch.float64), model.seeded_inputs(torch.float64)
    fused = accelerate(copy.deepcopy(plain))
    with TrueDouble():
        with torch.no_grad():
            upstream = torch.randn_like(output(plain, inputs))
        expected, got = results(plain, inputs, upstream), results(fused, inputs, upstream)
    for name, t in expected.items():
        assert t is None or (got[name] - t).abs().max() <= 1e-10 * t.abs().max().clamp_min(1e-3), name
    assert not passed_on(fused)
    assert not [found for found in find(fused) if found.why_not]


@pytest.mark.covers("output", "gradients")
@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_of_output_and_gradients_is_at_most_twice_the_untouched_models(model, dtype):
    fused, outcomes = three_ways(model, dtype, model.seeded_inputs(dtype))
    check_within(dtype, *outcomes)
    assert not passed_on(fused)


@pytest.mark.covers("output")
@settings(max_examples=12, deadline=None)
@given(
    model=st.sampled_from([STABLE_AUDIO, STABLE_AUDIO_3, ACE_STEP, FLUX, BASIC]),
    batch=st.integers(1, 2),
    length=st.integers(1, 20),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_lengths_and_batches(model, batch, length, dtype):
    _, outcomes = three_ways(model, dtype, model.seeded_inputs(dtype, batch, length))
    check_within(dtype, *outcomes, times=4)


@pytest.mark.about("diffusers: StableAudioDiTModel")
@pytest.mark.covers("masks")
@settings(max_examples=12, deadline=None)
@given(batch=st.integers(1, 2), length=st.integers(1, 9), data=st.data())
def test_masks_are_honoured(batch, length, data):
    def mask(tokens: int) -> Tensor:
        rows = [data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)) for _ in range(batch)]
        drawn = torch.tensor(rows)
        drawn[:, 0] = True  # PyTorch's attention gives NaN to a row that sees nothing
        return drawn

    inputs = STABLE_AUDIO.seeded_inputs(batch=batch, length=length)
    inputs |= {"attention_mask": mask(length), "encoder_attention_mask": mask(5)}
    fused, outcomes = three_ways(STABLE_AUDIO, torch.float32, inputs)
    check_within(torch.float32, *outcomes, times=4)
    assert not passed_on(fused)
    # What a mask hides has no part in the result.
    hidden = ~inputs["encoder_attention_mask"]
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].masked_fill(hidden[..., None], 100.0)
    with torch.no_grad():
        assert torch.equal(output(fused, inputs), outcomes[2]["output"])


def test_a_mask_of_flux_is_honoured():
    inputs = FLUX.seeded_inputs()
    seen = (torch.arange(14) != 2)[None].expand(2, -1)
    inputs["joint_attention_kwargs"] = {"attention_mask": seen}
    fused, outcomes = three_ways(FLUX, torch.float32, inputs)
    check_within(torch.float32, *outcomes)
    assert not passed_on(fused)


def test_float16_of_flux_stays_finite_as_in_the_original():
    plain, inputs = FLUX.seeded(torch.float16), FLUX.seeded_inputs(torch.float16)
    with torch.no_grad():
        plain.single_transformer_blocks[0].proj_out.bias.fill_(6e4)
        block = accelerate(copy.deepcopy(plain)).single_transformer_blocks[0]
        x, text, temb = torch.randn(3, 1, 4, 32, dtype=torch.float16).mul(1e3).unbind(0)
        got = block(x, text, temb[:, 0])
        assert all(t.isfinite().all() for t in got)
        assert got[0].abs().max() == 65504
        assert output(accelerate(plain), inputs).dtype == torch.float16


@every_model
def test_autocast(model):
    plain, inputs = model.seeded(), model.seeded_inputs()
    fused = accelerate(copy.deepcopy(plain))
    with torch.no_grad():
        exact = output(plain, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            expected, got = output(plain, inputs), output(fused, inputs)
    assert got.dtype == expected.dtype
    assert (got.float() - exact).norm() <= 2 * (expected.float() - exact).norm()


# Otherwise the model that it was -------------------------------------------------------------------------------------


@pytest.mark.covers("copies, hooks")
@every_model
def test_names_restore_copies_and_pickles(model):
    plain, inputs = model.seeded(), model.seeded_inputs()
    with torch.no_grad():
        expected = output(plain, inputs)
        names = {name: id(p) for name, p in plain.named_parameters()}
        state = {name: t.clone() for name, t in plain.state_dict().items()}
        modules = {name: type(m) for name, m in plain.named_modules()}
        fused = accelerate(plain)
        assert fused is plain
        assert {name: id(p) for name, p in fused.named_parameters()} == names
        assert fused.state_dict().keys() == state.keys()
        assert all(isinstance(m, modules[name]) for name, m in fused.named_modules())
        got = output(fused, inputs)
        assert not list(find(fused))  # a second time changes nothing
        assert torch.equal(output(accelerate(fused), inputs), got)
        assert torch.equal(output(copy.deepcopy(fused), inputs), got)
        assert torch.equal(output(pickle.loads(pickle.dumps(fused)), inputs), got)
        fused.load_state_dict(state)
        restore(fused)
        assert {name: type(m) for name, m in fused.named_modules()} == modules
        assert torch.equal(output(fused, inputs), expected)


@pytest.mark.covers("copies, hooks")
@every_model
def test_hooks_of_every_module_fire(model):
    """Only norms are passed by, and where one has a hook it is called after all."""
    plain, inputs = model.seeded(), model.seeded_inputs()
    fused = accelerate(copy.deepcopy(plain))

    def fired(model: nn.Module) -> list[str]:
        names = []
        for name, module in model.named_modules():
            module.register_forward_hook(lambda *_, name=name: names.append(name))
        with torch.no_grad():
            output(model, inputs)
        return names

    assert sorted(fired(fused)) == sorted(fired(plain))
    assert passed_on(fused)


def test_gradient_checkpointing():
    for model in (STABLE_AUDIO, STABLE_AUDIO_3, ACE_STEP, DIT, FLUX, SD3):
        fused, inputs = accelerate(model.seeded()).train(), model.seeded_inputs()
        if model is DIT:
            fused.eval()  # labels are dropped at random in training
        upstream = torch.ones(output(fused, inputs).shape)
        expected = results(fused, inputs, upstream)
        fused.enable_gradient_checkpointing()
        fused.train(model is not DIT)
        got = results(fused, inputs, upstream)
        assert all(t is None or torch.equal(got[name], t) for name, t in expected.items()), model


class LowRank(nn.Module):
    """LoRA as a parametrization, switched on and off."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(weight.shape[0], 2)), nn.Parameter(torch.randn(2, weight.shape[1]))
        self.on = True

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.a @ self.b / 8 if self.on else weight


@pytest.mark.covers("adapters")
@by_prompt
def test_low_rank_adapters_are_trained_and_switched(model):
    fused, inputs = accelerate(model.seeded()), model.seeded_inputs()
    with torch.no_grad():
        without = output(fused, inputs)
    linear = [m for m in fused.modules() if type(m) is nn.Linear]
    adapters = []
    for layer in linear:
        adapters.append(LowRank(layer.weight))
        parametrize.register_parametrization(layer, "weight", adapters[-1])
    output(fused, inputs).sum().backward()
    assert all(adapter.a.grad.any() for adapter in adapters[1:])
    with torch.no_grad(), prompt_cache(fused):
        adapted = output(fused, inputs)
        assert not torch.equal(adapted, without)
        for adapter in adapters:
            adapter.on = False
        assert torch.equal(output(fused, inputs), without)  # nothing of adapted layers is kept


@pytest.mark.slow
@pytest.mark.parametrize("model", [STABLE_AUDIO, FLUX], ids=str)
def test_fullgraph_compile(model):
    torch._dynamo.reset()
    fused, inputs = accelerate(model.seeded()), model.seeded_inputs()
    with torch.no_grad():
        expected = output(fused, inputs)
    fused.transformer_blocks[0] = torch.compile(fused.transformer_blocks[0], fullgraph=True, backend="aot_eager")
    made = output(fused, inputs)
    made.sum().backward()
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
