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
from torch.overrides import TorchFunctionMode

pytest.importorskip("diffusers", "0.42")

from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.attention_processor import AttnProcessor
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
)

from presto_kernels.integrations.prompt import prompt_cache
from presto_kernels.integrations.swapping import Accelerated, accelerate, find, restore
from presto_kernels.testing.tolerance import check, within

NOT_DIFFERENTIATED = ("timestep", "timestep_r")
every_model = pytest.mark.parametrize("model", MODELS, ids=str)
by_prompt = pytest.mark.parametrize("model", [STABLE_AUDIO, STABLE_AUDIO_3, ACE_STEP], ids=str)


@pytest.fixture(autouse=True)
def usual_backend():
    """``set_attention_backend`` changes the process's too."""
    yield
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


def passed_on(model: nn.Module) -> dict[tuple[str, str], int]:
    return dict(next(m for m in model.modules() if isinstance(m, Accelerated))._presto.passed_on)


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


# What a prompt decides -----------------------------------------------------------------------------------------------


class LinearCalls(TorchFunctionMode):
    """Counts the products with one weight, which a hook would have to be on for."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.count = weight, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.linear and args[1] is self.weight:
            self.count += 1
        return function(*args, **(kwargs or {}))


def text_weights(model: nn.Module) -> list[Tensor]:
    """Of the prompt's projection, of keys, of values: in each model those of the first block."""
    names = {
        "StableAudioDiTModel": ("cross_attention_proj.0", "transformer_blocks.0.attn2.to_k", "global_proj.2"),
        "StableAudio3DiTModel": (
            "to_cond_embed.0",
            "transformer_blocks.0.cross_attn.to_kv",
            "transformer_blocks.0.to_local_embed.0",
        ),
        "AceStepTransformer1DModel": ("condition_embedder", "layers.1.cross_attn.to_k", "layers.0.cross_attn.to_v"),
    }
    return [model.get_submodule(name).weight for name in names[type(model).__name__]]


@pytest.mark.covers("prompt_cache")
@by_prompt
def test_prompt_cache_skips_work_and_changes_nothing(model):
    fused, inputs = accelerate(model.seeded()), model.seeded_inputs()
    steps = [{**inputs, "hidden_states": torch.randn_like(inputs["hidden_states"])} for _ in range(3)]
    with torch.no_grad():
        expected = [output(fused, step) for step in steps]
        for weight in text_weights(fused):
            with prompt_cache(fused), LinearCalls(weight) as calls:
                got = [output(fused, step) for step in steps]
            assert calls.count == 1
            assert all(map(torch.equal, got, expected))
            with LinearCalls(weight) as calls:
                output(fused, steps[0])
            assert calls.count == 1  # outside nothing is kept


@pytest.mark.covers("prompt_cache")
@by_prompt
def test_prompt_cache_notices_what_changes(model):
    fused, inputs = accelerate(model.seeded()), model.seeded_inputs()
    other = {**inputs, "encoder_hidden_states": torch.randn_like(inputs["encoder_hidden_states"])}
    with torch.no_grad(), prompt_cache(fused):
        first = output(fused, inputs)
        assert not torch.equal(output(fused, other), first)
        assert torch.equal(output(fused, inputs), first)
        inputs["encoder_hidden_states"].mul_(2)  # edited in place
        edited = output(fused, inputs)
        assert not torch.equal(edited, first)
        text_weights(fused)[1].mul_(2)
        assert not torch.equal(output(fused, inputs), edited)


@by_prompt
def test_prompt_cache_keeps_nothing_that_a_hook_may_change(model):
    fused, inputs = accelerate(model.seeded()), model.seeded_inputs()
    steps = []

    def grow(module, args, kwargs):
        steps.append(module)
        name = "context" if "context" in kwargs else "encoder_hidden_states"
        return args, {**kwargs, name: kwargs[name] * len(steps)}

    blocks = fused.layers if model is ACE_STEP else fused.transformer_blocks
    blocks[1].register_forward_pre_hook(grow, with_kwargs=True)
    with torch.no_grad(), prompt_cache(fused):
        first, second = output(fused, inputs), output(fused, inputs)
    assert len(steps) == 2
    assert not torch.equal(first, second)


def test_prompt_cache_with_gradients_keeps_nothing():
    fused, inputs = accelerate(STABLE_AUDIO.seeded()), STABLE_AUDIO.seeded_inputs()
    weight = text_weights(fused)[1]
    with prompt_cache(fused):
        for _ in range(2):
            output(fused, inputs).sum().backward()
            assert weight.grad.any()
            weight.grad = None


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


# What ours does not take runs as before ------------------------------------------------------------------------------


class Halved:
    """A processor of somebody's own."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **given):
        return hidden_states / 2


@dataclasses.dataclass(frozen=True)
class Change:
    """Something a user does to a model, after which calls of a class run as the original."""

    model: Model
    of: str
    do: object
    why: str

    def __str__(self) -> str:
        return f"{self.model}, {self.why}"


def _each(kind: str, name: str, value: object):
    def do(model: nn.Module) -> None:
        for module in model.modules():
            if type(module).__name__ == kind:
                setattr(module, name, value)

    return do


CHANGES = [
    Change(STABLE_AUDIO, "Attention", lambda m: m.set_attn_processor(Halved()), "processor is a Halved"),
    Change(DIT, "Attention", _each("Attention", "processor", AttnProcessor()), "processor is a AttnProcessor"),
    Change(FLUX, "FluxAttention", lambda m: m.set_attention_backend("_native_math"), "backend _native_math"),
    Change(ACE_STEP, "AceStepAttention", lambda m: m.set_attention_backend("_native_math"), "backend _native_math"),
    Change(
        STABLE_AUDIO_3,
        "StableAudio3SelfAttention",
        _each("StableAudio3SelfAttention", "processor", type("Own", (), {"__call__": lambda s, a, h, rope: h / 2})()),
        "processor is a Own",
    ),
    Change(SD3, "JointTransformerBlock", lambda m: m.enable_forward_chunking(1, 0), "a feedforward in chunks"),
    Change(BASIC, "BasicTransformerBlock", lambda m: m.set_chunk_feed_forward(1, 0), "a feedforward in chunks"),
    Change(STABLE_AUDIO, "StableAudioDiTBlock", lambda m: m.transformer_blocks[0].norm2.float().register_forward_hook(
        lambda module, args, made: made * 2), "a hook on a norm"),
    Change(FLUX, "FluxAttention", lambda m: m.transformer_blocks[0].attn.norm_q.register_forward_hook(
        lambda module, args, made: made * 2), "a hook on a norm"),
    Change(DIT, "AdaLayerNormZero", lambda m: m.transformer_blocks[0].norm1.norm.register_forward_hook(
        lambda module, args, made: made * 2), "a hook on a norm"),
    Change(STABLE_AUDIO, "StableAudioDiTBlock", lambda m: setattr(m.transformer_blocks[0], "norm3", nn.Tanh()),
        "a norm is a Tanh"),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_changed_models_run_as_before(change):
    plain, inputs = change.model.seeded(), change.model.seeded_inputs()
    fused = accelerate(copy.deepcopy(plain))
    with torch.no_grad():
        before = output(fused, inputs)
        change.do(plain)
        change.do(fused)
        expected, got = output(plain, inputs), output(fused, inputs)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert any(kind == change.of and change.why in why for kind, why in passed_on(fused))
    if "Halved" in change.why or "hook" in change.why:
        assert not torch.allclose(got, before, rtol=1e-2)


def test_dropout_of_attention_weights_runs_as_before():
    model = dataclasses.replace(ACE_STEP, build=lambda: _with_dropout(ACE_STEP.build()))
    plain, inputs = model.seeded().train(), model.seeded_inputs()
    fused = accelerate(copy.deepcopy(plain))
    for each in (plain, fused):
        torch.manual_seed(3)
        each.made = output(each, inputs)
    torch.testing.assert_close(fused.made, plain.made, rtol=1e-4, atol=1e-5)
    assert passed_on(fused) == {("AceStepAttention", "dropout of attention weights"): 4}


def _with_dropout(model: nn.Module) -> nn.Module:
    _each("AceStepAttention", "dropout", 0.5)(model)
    return model


def test_fused_projections_of_flux_are_used():
    plain, inputs = FLUX.seeded(), FLUX.seeded_inputs()
    plain.fuse_qkv_projections()
    fused = accelerate(copy.deepcopy(plain))
    with torch.no_grad():
        expected = output(plain, inputs)
        torch.testing.assert_close(output(fused, inputs), expected, rtol=1e-4, atol=1e-5)
        attention = fused.transformer_blocks[0].attn
        for layer in (attention.to_qkv, attention.to_added_qkv):
            layer.weight.mul_(2)
        assert not torch.allclose(output(fused, inputs), expected, rtol=1e-2)
    assert not passed_on(fused)


def test_attention_that_does_not_fit_is_left():
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    for kwargs, why in (
        ({"norm_num_groups": 2}, "group_norm"),
        ({"residual_connection": True}, "residual"),
        ({"rescale_output_factor": 2.0}, "residual"),
        ({"processor": AttnProcessor()}, "AttnProcessor"),
        ({"kv_heads": 1, "heads": 2, "processor": AttnProcessor2_0()}, "fewer heads"),
    ):
        (found,) = find(Attention(32, **{"heads": 2, "dim_head": 16, **kwargs}))
        assert why in found.why_not


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
