"""What a prompt and a timestep decide is computed once in `prompt_cache`, for the models of diffusers."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

pytest.importorskip("diffusers", "0.42")

from diffusers_models import ACE_STEP, DIT, FLUX, SD3, SD3_0, STABLE_AUDIO, STABLE_AUDIO_3, output
from products import Products

from presto_kernels.integrations.prompt import prompt_cache
from presto_kernels.integrations.swapping import accelerate

by_prompt = pytest.mark.parametrize("model", [STABLE_AUDIO, STABLE_AUDIO_3, ACE_STEP], ids=str)
by_timestep = pytest.mark.parametrize("model", [STABLE_AUDIO, STABLE_AUDIO_3, ACE_STEP, DIT, FLUX, SD3, SD3_0], ids=str)


def of_the_text(model: nn.Module) -> tuple[str, ...]:
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
    return names[type(model).__name__]


@pytest.mark.covers("prompt_cache")
@by_prompt
def test_prompt_cache_skips_work_and_changes_nothing(model):
    fused, inputs = accelerate(model.seeded()), model.seeded_inputs()
    steps = [{**inputs, "hidden_states": torch.randn_like(inputs["hidden_states"])} for _ in range(3)]
    with torch.no_grad():
        expected = [output(fused, step) for step in steps]
        with prompt_cache(fused), Products(fused) as products:
            got = [output(fused, step) for step in steps]
        assert [products.counts[name] for name in of_the_text(fused)] == [1, 1, 1]
        assert all(map(torch.equal, got, expected))
        with Products(fused) as products:
            output(fused, steps[0])
        assert [products.counts[name] for name in of_the_text(fused)] == [1, 1, 1]  # outside nothing is kept


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
        fused.get_submodule(of_the_text(fused)[1]).weight.mul_(2)
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
    weight = fused.get_submodule(of_the_text(fused)[1]).weight
    with prompt_cache(fused):
        for _ in range(2):
            output(fused, inputs).sum().backward()
            assert weight.grad.any()
            weight.grad = None


# What a timestep decides too ------------------------------------------------------------------------------------------

MODULATION = {  # of each model, the layers that make it: by the ends of their names
    "StableAudioDiTModel": ("timestep_proj.0", "timestep_proj.2"),
    "StableAudio3DiTModel": ("to_timestep_embed.0", "global_cond_embedder.0", "global_cond_embedder.2"),
    "AceStepTransformer1DModel": ("time_embed.linear_1", "time_embed.time_proj", "time_embed_r.linear_2"),
    "DiTTransformer2DModel": ("transformer_blocks.0.norm1.linear", "transformer_blocks.1.norm1.linear"),
    "FluxTransformer2DModel": (
        "transformer_blocks.0.norm1.linear",
        "transformer_blocks.0.norm1_context.linear",
        "single_transformer_blocks.0.norm.linear",
        "norm_out.linear",
    ),
    "SD3Transformer2DModel": (
        "transformer_blocks.0.norm1.linear",  # of two self-attentions in SD3.5
        "transformer_blocks.1.norm1_context.linear",
        "transformer_blocks.2.norm1_context.linear",
        "norm_out.linear",
    ),
}


def at(inputs, moment: int):
    """A step at one of three timesteps, which is told in a new tensor."""
    return {
        **inputs,
        "hidden_states": torch.randn_like(inputs["hidden_states"]),
        "timestep": inputs["timestep"] * (moment + 1),
    }


@pytest.mark.covers("prompt_cache")
@by_timestep
def test_modulation_is_computed_once_a_timestep(model):
    fused, inputs = accelerate(model.seeded()), model.seeded_inputs()
    steps = [at(inputs, moment) for moment in (0, 1, 0, 2, 1)]
    names = MODULATION[type(fused).__name__]
    with torch.no_grad():
        expected = [output(fused, step) for step in steps]
        with prompt_cache(fused), Products(fused) as products:
            got = [output(fused, step) for step in steps]
        assert {products.counts[name] for name in names} == {3}
        assert all(map(torch.equal, got, expected))
        with prompt_cache(fused, read_timesteps=False), Products(fused) as products:
            got = [output(fused, step) for step in steps]
        assert {products.counts[name] for name in names} == {5}
        assert all(map(torch.equal, got, expected))


@by_timestep
def test_what_modulation_depends_on_is_noticed(model):
    fused, inputs = accelerate(model.seeded()), model.seeded_inputs()
    beside = {"StableAudioDiTModel": "encoder_hidden_states", "StableAudio3DiTModel": "global_hidden_states",
              "AceStepTransformer1DModel": "timestep_r", "DiTTransformer2DModel": "class_labels"}  # fmt: skip
    name = beside.get(type(fused).__name__, "pooled_projections")
    with torch.no_grad(), prompt_cache(fused):
        first = output(fused, inputs)
        other = {**inputs, name: inputs[name] + 1}
        assert not torch.equal(output(fused, other), first)
        assert torch.equal(output(fused, inputs), first)
        inputs[name].add_(1)  # edited in place
        assert torch.equal(output(fused, inputs), output(fused, other))
        fused.get_submodule(MODULATION[type(fused).__name__][0]).weight.mul_(2)
        assert not torch.equal(output(fused, inputs), output(fused, {**inputs, "timestep": inputs["timestep"] * 2}))
        assert not torch.equal(output(fused, inputs), first)


EMBEDDINGS = {  # of each model, what the prompt and the timestep go through before the blocks
    "StableAudioDiTModel": ("cross_attention_proj.0", "global_proj.2", "timestep_proj.0"),
    "StableAudio3DiTModel": ("to_cond_embed.2", "to_global_embed.0", "to_timestep_embed.2"),
    "AceStepTransformer1DModel": ("condition_embedder", "time_embed.linear_1", "time_embed_r.linear_2"),
    "DiTTransformer2DModel": ("transformer_blocks.1.norm1.emb.timestep_embedder.linear_1",),
    "FluxTransformer2DModel": ("time_text_embed.timestep_embedder.linear_1", "time_text_embed.text_embedder.linear_2"),
    "SD3Transformer2DModel": ("time_text_embed.timestep_embedder.linear_2", "time_text_embed.text_embedder.linear_1"),
}


class Switched(nn.Module):
    """An adapter that is another one at every call."""

    calls = 0

    def forward(self, weight):
        self.calls += 1
        return weight * self.calls


@by_timestep
def test_what_was_kept_of_other_embeddings_is_not_used(model):
    fused, inputs = accelerate(model.seeded()), model.seeded_inputs()
    for name in EMBEDDINGS[type(fused).__name__]:
        layer = fused.get_submodule(name)
        with torch.no_grad(), prompt_cache(fused):
            first = output(fused, inputs)
            layer.weight.mul_(1.5)
            edited = output(fused, inputs)
            assert not torch.equal(edited, first), name
        with torch.no_grad():
            assert torch.equal(output(fused, inputs), edited), name
        parametrize.register_parametrization(layer, "weight", Switched())
        with torch.no_grad(), prompt_cache(fused):
            assert not torch.equal(output(fused, inputs), output(fused, inputs)), name
        parametrize.remove_parametrizations(layer, "weight")


def test_labels_dropped_in_training_are_drawn_anew():
    fused, inputs = accelerate(DIT.seeded()).train(), DIT.seeded_inputs()
    for block in fused.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0.5
    with torch.no_grad(), prompt_cache(fused):
        outputs = [output(fused, inputs) for _ in range(12)]
    assert len({float(made.sum()) for made in outputs}) > 1


def test_a_hook_that_changes_the_embedding_is_heard():
    fused, inputs = accelerate(FLUX.seeded()), FLUX.seeded_inputs()
    calls = []

    def grow(module, args, made):
        calls.append(module)
        return made * len(calls)

    fused.time_text_embed.register_forward_hook(grow)
    with torch.no_grad(), prompt_cache(fused):
        assert not torch.equal(output(fused, inputs), output(fused, inputs))
    assert len(calls) == 2
