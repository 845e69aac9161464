"""Calls and modules of diffusers that ours does not take: they run as before, and it is said why."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers", "0.42")

from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.attention_processor import AttnProcessor
from diffusers_models import (
    ACE_STEP,
    BASIC,
    DIT,
    FLUX,
    SD3,
    SD3_0,
    STABLE_AUDIO,
    STABLE_AUDIO_3,
    Model,
    output,
    passed_on,
)

from presto_kernels.integrations.swapping import accelerate, find


@pytest.fixture(autouse=True)
def usual_backend():
    """``set_attention_backend`` changes the process's too."""
    yield
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


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
    Change(SD3_0, "Attention", lambda m: m.fuse_qkv_projections(), "processor is a FusedJointAttnProcessor2_0"),
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
    Change(STABLE_AUDIO, "StableAudioDiTBlock", lambda m: m.transformer_blocks[0].norm2.register_forward_hook(
        lambda module, args, made: made * 2), "a hook on a norm"),
    Change(ACE_STEP, "AceStepTransformerBlock", lambda m: setattr(m.layers[0].mlp_norm, "forward", lambda x: x * 3),
        "a hook on a norm"),  # as libraries do that bring weights into place
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


def test_wider_conditioning_and_weights_widen_the_tokens_as_before():
    from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero, AdaLayerNormZeroSingle, RMSNorm

    torch.manual_seed(0)
    x, emb = torch.randn(2, 3, 32, dtype=torch.bfloat16), torch.randn(2, 32)
    for norm in (AdaLayerNormZero(32), AdaLayerNormZeroSingle(32)):
        expected = norm(x, emb=emb)[0]
        assert torch.equal(accelerate(norm)(x, emb=emb)[0], expected)
        assert expected.dtype == torch.float32
        assert [why for _, why in passed_on(norm)] == ["conditioning in a wider dtype than the tokens"]
    norm = RMSNorm(32, 1e-6)
    expected = norm(x)
    assert torch.equal(accelerate(norm)(x), expected)
    assert passed_on(norm)
    norm = AdaLayerNormContinuous(32, 32).bfloat16()  # casts the conditioning itself
    expected = norm(x, emb)
    torch.testing.assert_close(accelerate(norm)(x, emb), expected, rtol=2e-2, atol=2e-2)
    assert not passed_on(norm)


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
