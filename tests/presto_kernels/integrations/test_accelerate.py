"""What ``accelerate`` leaves as it is, and what it says."""

import copy
import io
import pickle
from pathlib import Path

import peers
import pytest
import torch
from known_classes import classes
from small_stability import cast, dit_inputs, tools_dit
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

import presto_kernels
from presto_kernels import accelerate, accelerate_report, capture, prompt_cache, restore
from presto_kernels.integrations.swapping import Accelerated


@pytest.fixture
def model():
    return tools_dit()


@pytest.fixture
def given(model):
    return dit_inputs(model)


def count(model):
    return sum(isinstance(module, Accelerated) for module in model.modules())


def test_only_forward_changes(model, given):
    names, parameters = list(model.state_dict()), dict(model.named_parameters())
    classes = {path: type(module) for path, module in model.named_modules()}
    assert accelerate(model) is model
    assert count(model) > 10
    assert list(model.state_dict()) == names
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    for path, module in model.named_modules():
        assert isinstance(module, classes[path])
        assert type(module).__name__ == classes[path].__name__
    assert model.train().training and not model.eval().training
    assert next(model.double().parameters()).dtype == torch.float64
    assert model(**cast(given, torch.float64)).dtype == torch.float64


def test_another_model_of_the_same_classes_is_not_touched(model, given):
    other = tools_dit()
    expected = other(**given)
    accelerate(model)
    assert count(other) == 0
    assert type(other) is peers.stable_audio_tools().dit.DiffusionTransformer
    assert torch.equal(other(**given), expected)


def test_twice_is_once(model, given):
    accelerate(model)
    classes, out = [type(module) for module in model.modules()], model(**given)
    accelerate(model)
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(model(**given), out)


def test_a_part_first_and_then_the_whole_share_one_session(model):
    accelerate(model.transformer.layers[0])
    accelerate(model)
    assert len({id(module._presto) for module in model.modules() if isinstance(module, Accelerated)}) == 1


@pytest.mark.about("stable-audio-tools: DiT")
@pytest.mark.covers("copies, hooks")
def test_restore_gives_everything_back(model, given):
    classes, before = [type(module) for module in model.modules()], model(**given)
    restore(accelerate(model))
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(model(**given), before)
    assert not any("_presto" in vars(module) for module in model.modules())
    restore(model)  # of a model that is not accelerated: nothing


@pytest.mark.about("stable-audio-tools: DiT")
@pytest.mark.covers("copies, hooks")
def test_copies_and_pickles_are_accelerated_by_themselves(model, given):
    out = accelerate(model)(**given)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stream, weights_only=False)):
        assert count(other) == count(model)
        assert other._presto is not model._presto
        assert torch.equal(other(**given), out)
        assert count(restore(other)) == 0
    assert torch.equal(model(**given), out)


@pytest.mark.about("stable-audio-tools: DiT")
@pytest.mark.covers("copies, hooks")
def test_hooks_on_modules_still_hear(model, given):
    heard = []
    accelerate(model)
    layer = model.transformer.layers[1]
    for module in (layer, layer.self_attn, layer.ff, layer.self_attn.to_out):
        module.register_forward_hook(lambda module, args, out: heard.append(module))
    model(**given)
    assert heard == [layer.self_attn.to_out, layer.self_attn, layer.ff, layer]


def test_a_hook_on_what_is_passed_by_runs_the_original_and_is_reported(model, given):
    expected = model(**given)
    heard = []
    accelerate(model)
    model.transformer.layers[1].ff_norm.register_forward_hook(lambda *args: heard.append(1))
    torch.testing.assert_close(model(**given), expected)
    assert heard == [1]
    report = accelerate_report(model)
    assert report.passed_on == {("TransformerBlock", "a hook on a norm or a LayerScale"): 1}
    assert "calls that ran as the original" in str(report)


def test_what_is_not_ours_to_swap_is_left_and_said(model, given):
    transformer = peers.stable_audio_tools().transformer

    class Own(transformer.GLU):
        def forward(self, x):
            return super().forward(x) * 2

    class Newer(transformer.GLU):
        pass

    layers = model.transformer.layers
    layers[0].ff.ff[0].__class__ = Own
    layers[1].self_attn.forward = layers[1].self_attn.forward
    layers[1].ff.ff[0].act = nn.Tanh()
    parametrize.register_parametrization(layers[0].pre_norm, "gamma", nn.Identity())
    expected = model(**given)
    accelerate(model)
    torch.testing.assert_close(model(**given), expected)
    said = {row.where: row.what for row in accelerate_report(model).left}
    assert "forward of its own" in said["transformer.layers.0.ff.ff.0"]
    assert "Tanh" in said["transformer.layers.1.ff.ff.0"]
    assert "replaced on the object" in said["transformer.layers.1.self_attn"]
    assert "parametrized itself" in said["transformer.layers.0.pre_norm"]


def test_a_forward_with_arguments_that_we_do_not_know_is_left(model, monkeypatch):
    glu = peers.stable_audio_tools().transformer.GLU
    monkeypatch.setattr(glu, "forward", lambda self, x, temperature=1.0: self.proj(x))
    left = {row.name: row.what for row in accelerate_report(accelerate(model)).left}
    assert "temperature" in left["GLU"]


def test_restore_refuses_what_was_changed_since(model):
    accelerate(model)
    parametrize.register_parametrization(model.transformer.layers[0].pre_norm, "gamma", nn.Identity())
    with pytest.raises(RuntimeError, match=r"transformer\.layers\.0\.pre_norm .*undo that first"):
        restore(model)
    assert count(model) > 10
    parametrize.remove_parametrizations(model.transformer.layers[0].pre_norm, "gamma")


def test_the_report_fits_a_terminal_and_says_what_runs(model):
    before = accelerate_report(model)
    assert not before.swapped and all("was not called" in row.what for row in before.left)
    report = accelerate_report(accelerate(model))
    assert {row.name: row.count for row in report.swapped} == {
        "DiffusionTransformer": 1, "ContinuousTransformer": 1, "TransformerBlock": 2, "Attention": 4, "GLU": 2,
        "LayerNorm": 6, "RotaryEmbedding": 1, "Sequential": 2,
    }  # fmt: skip
    assert not report.left and report.share > 0.9
    assert max(map(len, str(report).splitlines())) <= 100
    assert "nothing that accelerate knows" in str(accelerate_report(nn.Linear(2, 2)))


def test_settings_are_checked_and_can_be_changed(model, given):
    with pytest.raises(ValueError, match=r"backend: 'fast' is none; choose from auto, reference"):
        accelerate(model, backend="fast")
    with pytest.raises(ValueError, match=r"masks: 'right' is none; choose from faithful, exact"):
        accelerate(model, masks="right")
    assert count(model) == 0
    expected = model(**given)
    accelerate(model, backend="reference")
    assert accelerate_report(model).backend == "reference"
    torch.testing.assert_close(model(**given), expected)
    assert presto_kernels.explain("swiglu", torch.randn(1, 2, 8)).reason != "forced by use_backend('reference')"
    accelerate(model)
    assert accelerate_report(model).backend == "auto"


@pytest.mark.parametrize("function", [accelerate, restore, accelerate_report, capture])
def test_what_is_no_module_is_refused(function, model):
    class Pipeline:
        transformer = model

    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got Pipeline"):
        function(Pipeline())
    with pytest.raises(TypeError, match=r"it holds modules: \.transformer"):
        accelerate(Pipeline())


# What a prompt decides ------------------------------------------------------------------------------------------------


class Counting(TorchFunctionMode):
    """How often each projection of the prompt is computed; a hook would be one that may change it."""

    def __init__(self, model):
        super().__init__()
        self.keys = self.prompt = 0
        self.of_keys = [layer.cross_attn.to_kv for layer in model.transformer.layers]
        self.of_prompt = [model.to_cond_embed[0]]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.linear:
            self.keys += any(args[1] is layer.weight for layer in self.of_keys)
            self.prompt += any(args[1] is layer.weight for layer in self.of_prompt)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def calls(model):
    with Counting(model) as counting:
        yield counting


@torch.no_grad()
def test_keys_and_values_are_computed_once_a_prompt(model, given, calls):
    accelerate(model)
    expected = model(**given)
    assert calls.keys == 2
    with prompt_cache(model):
        for step in range(3):
            later = given | {"x": given["x"] + step, "t": given["t"] * 0.5**step}
            out = model(**later)
            assert torch.equal(out, expected) == (step == 0)
        assert calls.keys == 4 and calls.prompt == 2
        with prompt_cache(model):
            model(**given)
        assert calls.keys == 4 and calls.prompt == 2
    assert torch.equal(model(**given), expected)
    assert calls.keys == 6


@torch.no_grad()
def test_another_prompt_other_weights_and_edits_in_place_are_noticed(model, given):
    plain = copy.deepcopy(model)
    accelerate(model)
    with prompt_cache(model):
        for change in ("nothing", "prompt", "edit", "weights", "loaded", "dtype"):
            if change == "prompt":
                given["cross_attn_cond"] = torch.randn_like(given["cross_attn_cond"])
            elif change == "edit":
                given["cross_attn_cond"].mul_(2)
            elif change == "weights":
                for each in (model, plain):
                    each.transformer.layers[0].cross_attn.to_kv.weight.add_(0.1)
            elif change == "loaded":
                state = {name: value * 1.1 for name, value in plain.state_dict().items()}
                model.load_state_dict(state), plain.load_state_dict(state)
            elif change == "dtype":
                model.double(), plain.double()
                given = cast(given, torch.float64)
            torch.testing.assert_close(model(**given), plain(**given))
            torch.testing.assert_close(model(**given), plain(**given))


class Adapter(nn.Module):
    """Another weight at every call."""

    def forward(self, weight):
        return weight + torch.rand(())


def test_nothing_is_kept_where_gradients_are_recorded_or_adapters_are(model, given, calls):
    accelerate(model)
    with prompt_cache(model):
        model(**given)
        model(**given)
    assert calls.keys == 4
    parametrize.register_parametrization(model.transformer.layers[1].cross_attn.to_kv, "weight", Adapter())
    with torch.no_grad(), prompt_cache(model):
        model(**given)
        assert not torch.equal(model(**given), model(**given))  # as the adapter wants it


def test_the_cache_wants_an_accelerated_model(model):
    with pytest.raises(ValueError, match="nothing in model is accelerated"), prompt_cache(model):
        pass


def test_capture_on_a_cpu_calls_the_model(model, given):
    accelerate(model)
    with torch.no_grad():
        assert torch.equal(capture(model)(**given), model(**given))
    with pytest.raises(ValueError, match="graphs must be at least 1, got 0"):
        capture(model, graphs=0)
    with pytest.raises(ValueError, match="training mode"):
        capture(model.train())


def test_the_page_lists_the_classes():
    assert classes() in (Path(__file__).parents[3] / "docs" / "accelerate.md").read_text()
