"""stable-audio-tools and Stable Audio 3: the accelerated model computes what the untouched one does.

In float64, where the ops are plain PyTorch, the two agree to rounding (of fp32, in which the original turns queries and
keys whatever their dtype): that holds the formulas.  In fp32 and bf16 the
accelerated model errs at most twice as much against float64 as the untouched one, and so does a whole sampling run.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from products import Products
from small_stability import cast, dit_inputs, perturbed, sa3_dit, same_decoder, three, tools_dit
from torch.nn.utils import parametrize

from presto_kernels import accelerate, accelerate_report, prompt_cache
from presto_kernels.testing import within

EPS = {torch.float32: 2**-23, torch.bfloat16: 2**-8}
DITS = {
    "tools": tools_dit,
    "tools, LayerNorm of queries": lambda: tools_dit(attn_kwargs={"qk_norm": "ln"}),
    "tools, cosine attention": lambda: tools_dit(attn_kwargs={"qk_norm": "l2"}),
    "tools, AdaLN and as many keys": lambda: tools_dit(global_cond_type="adaLN", project_cond_tokens=True),
    "tools, DynamicTanh": lambda: tools_dit(remove_norms=True, attn_kwargs={"qk_norm": "dyt"}),
    "tools, differential, means apart": lambda: tools_dit(attn_kwargs={"differential": True, "feat_scale": True}),
    "tools, LayerScale, conformer": lambda: tools_dit(layer_scale=True, conformer=True, global_cond_type="adaLN"),
    "sa3": sa3_dit,
    "sa3 medium": lambda: sa3_dit(attn_kwargs={"qk_norm": "rms", "differential": True}),
    "sa3, local conditions by name": lambda: sa3_dit(modular_local_cond_configs=[{"id": "beat", "dim": 9}]),
}


@pytest.fixture(scope="module", params=list(DITS), ids=lambda name: name.replace(", ", "-").replace(" ", "_"))
def dit(request):
    return DITS[request.param]()


def inputs(model, **sizes):
    found = dit_inputs(model, **sizes)
    if getattr(model.transformer.layers[0], "modular_local_embeds", None):
        found["modular_local_cond"] = {"beat": torch.randn(found["local_add_cond"].shape)}
    return found


def as_dtype(found, dtype):
    modular = found.get("modular_local_cond")
    return cast(found, dtype) | ({"modular_local_cond": cast(modular, dtype)} if modular else {})


def judged(name, y, oracle, plain):
    outcome = within(name, y, oracle, plain, rowwise=False, eps=EPS[plain.dtype])
    assert outcome.ok, str(outcome)


def test_every_module_that_is_known_is_swapped(dit):
    report = accelerate_report(accelerate(copy.deepcopy(dit)))
    assert not report.left, str(report)


@pytest.mark.covers("output", "prompt_cache")
def test_the_formulas(dit):
    fast = accelerate(copy.deepcopy(dit).double())
    found = as_dtype(inputs(dit), torch.float64)
    expected = copy.deepcopy(dit).double()(**found)
    torch.testing.assert_close(fast(**found), expected, rtol=1e-6, atol=1e-6)
    with torch.no_grad(), prompt_cache(fast):
        for _ in range(2):
            torch.testing.assert_close(fast(**found), expected.detach(), rtol=1e-6, atol=1e-6)
    assert not accelerate_report(fast).passed_on


@pytest.mark.covers("output", "prompt_cache")
@pytest.mark.parametrize("dtype", EPS, ids=str)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9))
def test_outputs(dit, dtype, batch, length, text):
    fast, plain, wide = three(copy.deepcopy(dit), dtype)
    found = as_dtype(inputs(dit, batch=batch, length=length, text=text), dtype)
    with torch.no_grad():
        out = accelerate(fast)(**found)
        judged("output", out, wide(**as_dtype(found, torch.float64)), plain(**found))
        with prompt_cache(fast):
            assert torch.equal(fast(**found), out) and torch.equal(fast(**found), out)


@pytest.mark.covers("gradients")
@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(dit, dtype, checkpointing):
    models = three(copy.deepcopy(dit), dtype)
    accelerate(models[0])
    found = as_dtype(inputs(dit), dtype)
    weights = torch.randn(found["x"].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = []
    for model in models:
        own = as_dtype(found, next(model.parameters()).dtype)
        leaves = {n: own[n].detach().clone().requires_grad_() for n in ("x", "cross_attn_cond", "global_embed")}
        (model(**(own | leaves), use_checkpointing=checkpointing) * weights).sum().backward()
        gradients.append([leaf.grad for leaf in (*leaves.values(), *model.parameters())])
    ours, plain, _ = gradients
    for a, b in zip(ours, plain, strict=True):
        assert (a is None) == (b is None)
    there = [i for i, gradient in enumerate(plain) if gradient is not None]
    flat = [torch.cat([each[i].flatten().double() for i in there]) for each in gradients]
    size = flat[2].square().mean().sqrt()
    errors = [(each - flat[2]).square().mean().sqrt() for each in flat[:2]]
    assert errors[0] <= 2 * errors[1] + 2 * EPS[dtype] * size
    assert len(there) > 20


@pytest.mark.covers("sampling")
@torch.no_grad()
@pytest.mark.parametrize("make", [tools_dit, sa3_dit], ids=["tools", "sa3"])
@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_a_whole_sampling_run_with_guidance(make, dtype):
    fast, plain, wide = three(make(), dtype)
    accelerate(fast)
    found = dit_inputs(plain, batch=1, length=13)
    outs = []
    for model in (fast, plain, wide):
        own = cast(found, next(model.parameters()).dtype)
        x, own = own.pop("x"), {name: value for name, value in own.items() if name != "t"}
        with prompt_cache(fast):
            for now, later in zip(torch.linspace(1, 0.125, 8), torch.linspace(0.875, 0, 8), strict=True):
                velocity = model(x=x, t=now.expand(1), cfg_scale=3.0, **own)
                x = x + (later - now) * velocity
        outs.append(x)
    judged("sample", outs[0], outs[2], outs[1])


@pytest.mark.covers("prompt_cache")
@torch.no_grad()
@pytest.mark.parametrize("reads, times", [(None, 2), (False, 4)])
def test_modulation_is_computed_once_a_timestep(dit, reads, times):
    fast, given = accelerate(copy.deepcopy(dit)), inputs(dit)
    steps = [given | {"x": given["x"] + step, "t": given["t"] * 0.5 ** (step % 2)} for step in range(4)]
    expected = [fast(**step) for step in steps]
    with prompt_cache(fast, read_timesteps=reads), Products(fast) as products:
        outs = [fast(**step) for step in steps]
    assert all(map(torch.equal, outs, expected))
    adaln = dit.transformer.global_cond_embedder is not None
    layers = ["to_timestep_embed.0", "to_timestep_embed.2", *(["transformer.global_cond_embedder.2"] if adaln else [])]
    assert {name: products.counts[name] for name in layers} == dict.fromkeys(layers, times)


@torch.no_grad()
def test_what_was_kept_of_other_embeddings_is_not_used(dit):
    fast, given = accelerate(copy.deepcopy(dit)), inputs(dit)
    for name in ("to_timestep_embed.0", "to_global_embed.2", "to_cond_embed.0"):
        if isinstance(fast.get_submodule(name.partition(".")[0]), torch.nn.Identity):
            continue
        with prompt_cache(fast):
            first = fast(**given)
            fast.get_submodule(name).weight.mul_(1.5)
            edited = fast(**given)
        assert not torch.equal(edited, first), name
        assert torch.equal(fast(**given), edited), name


# Stable Audio 3 only -------------------------------------------------------------------------------------------------


@pytest.mark.about("Stable Audio 3: DiT")
@pytest.mark.covers("masks")
@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_padding_does_what_it_does_in_the_original(lengths):
    fast, plain, wide = three(sa3_dit(), torch.float32)
    accelerate(fast)
    found = dit_inputs(plain, batch=len(lengths), length=12)
    found["padding_mask"] = torch.arange(12) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        judged("output", fast(**found), wide(**cast(found, torch.float64)), plain(**found))
    assert not accelerate_report(fast).passed_on


@pytest.mark.about("Stable Audio 3: DiT")
@pytest.mark.covers("masks")
@torch.no_grad()
def test_exact_masks_are_what_a_shorter_input_gives():
    plain, short, long = sa3_dit(), 7, 12
    fast = accelerate(copy.deepcopy(plain), masks="exact")
    assert "padded keys are not seen" in str(accelerate_report(fast))
    found = dit_inputs(plain, length=long)
    # local conditioning is aligned at the end, and the memory tokens stand in front
    cut = found | {name: found[name][..., :short] for name in ("x", "local_add_cond")}
    expected = plain(**cut)
    padded = found | {"padding_mask": (torch.arange(long) < short).expand(2, -1)}
    torch.testing.assert_close(fast(**padded)[..., :short], expected, rtol=1e-4, atol=1e-5)
    assert (plain(**padded)[..., :short] - expected).abs().max() > 1e-3  # what it is there for


@pytest.mark.about("Stable Audio 3: SAME decoder")
@pytest.mark.covers("output")
@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"sliding_window": [2, 1], "chunk_midpoint_shift": False},
                                     {"sinusoidal_blocks": [3]}, {"dyt": False, "layer_scale": True}],
                         ids=["SAME-S", "window", "sine gates", "RMSNorm and LayerScale"])  # fmt: skip
@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_same_decoders(changes, dtype, monkeypatch):
    model = same_decoder(**changes)
    transformer = type(model.layers[3].transformers[0]).forward.__globals__
    monkeypatch.setitem(transformer, "flex_attention_compiled", None)  # minutes of compiling, for the same result
    for latents in (1, 6, 9):
        fast, plain, wide = three(copy.deepcopy(model), dtype)
        z = torch.randn(2, 5, latents, generator=torch.Generator().manual_seed(latents)).to(dtype)
        assert not accelerate_report(accelerate(fast)).left
        judged("audio", fast(z), wide(z.double()), plain(z))
        assert not accelerate_report(fast).passed_on


@pytest.mark.about("stable-audio-tools: DiT")
@pytest.mark.covers("adapters")
def test_lora_by_parametrization_trains_through_the_fused_backward():
    class LoRA(torch.nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.down = torch.nn.Parameter(torch.randn(2, weight.shape[1]) * 0.1)
            self.up = torch.nn.Parameter(torch.zeros(weight.shape[0], 2))

        def forward(self, weight):
            return weight + self.up @ self.down

    def adapted(model):
        model.requires_grad_(False)
        torch.manual_seed(0)
        for layer in model.transformer.layers:
            for linear in (layer.self_attn.to_qkv, layer.cross_attn.to_kv, layer.ff.ff[0].proj):
                parametrize.register_parametrization(linear, "weight", LoRA(linear.weight))
        return model

    found = dit_inputs(tools_dit())
    trained = []
    for model in (adapted(tools_dit()), accelerate(adapted(tools_dit())), adapted(accelerate(tools_dit()))):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(**found).square().mean().backward()
            optimizer.step()
        trained.append({name: p for name, p in model.named_parameters() if p.requires_grad})
    assert trained[0].keys() == trained[1].keys() == trained[2].keys()
    for name, expected in trained[0].items():
        torch.testing.assert_close(trained[1][name], expected, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(trained[2][name], expected, rtol=1e-3, atol=1e-6)
    assert any(p.abs().max() > 1e-4 for name, p in trained[0].items() if name.endswith(".up"))


def test_a_gate_that_is_wrong_is_found(monkeypatch):
    """The tests above tell sigmoid(1 - gate) from sigmoid(gate)."""
    from presto_kernels.integrations.stability import block

    def wrong(gate, layer_scale):
        return {"gate": None if gate is None else torch.sigmoid(gate), "gate_fn": "identity"}

    monkeypatch.setattr(block, "_gating", wrong)
    model = perturbed(tools_dit(global_cond_type="adaLN", project_cond_tokens=True))
    with pytest.raises(AssertionError):
        test_the_formulas(model)
