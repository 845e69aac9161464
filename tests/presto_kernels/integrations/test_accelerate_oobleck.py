"""Oobleck of diffusers and stable-audio-tools, accelerated: the same numbers, whatever becomes of the weights."""

import copy
import pickle
import warnings

import peers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oobleck_cases import CASES, HOP, LATENTS, make, move, signal
from torch import nn
from torch.nn.utils import parametrizations, parametrize, remove_weight_norm

from presto_kernels import accelerate, accelerate_report, restore
from presto_kernels.integrations.swapping import Accelerated, find
from presto_kernels.oobleck import Chain
from presto_kernels.testing import check, within

cases = pytest.mark.parametrize(("project", "side"), CASES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def run(module, x):
    with torch.no_grad():
        return module(x)


def copied(module):
    """The folded copy, or None."""
    kept = module.__dict__.get("_presto_kept")
    return kept and kept.chain


def passed_on(module):
    return {why for _, why in module._presto.passed_on}


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.covers("output")
@cases
@dtypes
@settings(max_examples=4, deadline=None)
@given(batch=st.integers(1, 2), length=st.integers(1, 23))
def test_outputs_err_at_most_twice_as_much_as_the_untouched_module(project, side, dtype, batch, length):
    plain = _built(project, side, dtype)
    fused, wide = _built(project, side, dtype, "fused"), _built(project, side, dtype, "wide")
    # Of a few numbers one errs twice as much as another by chance; several signals make enough of them.
    signals = [
        signal(side, batch, length, dtype, seed) for seed in range(1 + (24 // length if side == "encoder" else 0))
    ]
    got = torch.cat([run(fused, x) for x in signals])
    usual, right = torch.cat([run(plain, x) for x in signals]), torch.cat([run(wide, x.double()) for x in signals])
    assert got.dtype == dtype and not got.requires_grad
    assert copied(fused) is not None and not passed_on(fused)
    check([within("output", got, right, usual, rowwise=False, eps=torch.finfo(dtype).eps)])


_made: dict[tuple, nn.Module] = {}


def _built(project, side, dtype, which="plain"):
    key = project, side, dtype, which
    if key not in _made:
        module = make(project, side, dtype)
        _made[key] = accelerate(module) if which == "fused" else module.double() if which == "wide" else module
    return _made[key]


@pytest.mark.covers("gradients")
@cases
@dtypes
def test_gradients_err_at_most_twice_as_much_as_the_untouched_module(project, side, dtype):
    fused, wide, plain = (
        accelerate(make(project, side, dtype)),
        make(project, side, dtype).double(),
        make(project, side, dtype),
    )
    results = [by_kind([gradients(m, side, dtype, seed) for seed in range(3)]) for m in (fused, wide, plain)]
    assert copied(fused) is None and passed_on(fused) == {"gradients are recorded: only its Snake is fused"}
    fused, wide, plain = results
    assert set(wide) == {"x", "alpha", "beta", "bias", "weight_g", "weight_v"}
    sizes = {kind: [part.abs().max() for part in parts] for kind, parts in wide.items()}
    fused, wide, plain = (
        {
            kind: torch.cat([(p / size).flatten() for p, size in zip(result[kind], sizes[kind], strict=True)])
            for kind in wide
        }
        for result in results
    )
    eps = torch.finfo(dtype).eps
    check([within(kind, fused[kind], wide[kind], plain[kind], rowwise=False, eps=eps) for kind in wide])


def gradients(module, side, dtype, seed):
    """Of the input and of every parameter; in training, where stable-audio-tools computes units twice, and not."""
    module.train(seed == 1).zero_grad()
    x = signal(side, 2, 5, dtype, seed).to(next(module.parameters()).dtype).requires_grad_()
    y = module(x)
    (y * torch.cos(torch.arange(y.shape[-1], dtype=y.dtype))).sum().backward()
    return {"x": x.grad} | {name: parameter.grad for name, parameter in module.named_parameters()}


def by_kind(results):
    """All the alphas, all the biases, ...

    Of a dozen numbers whose errors come from the convolutions around them one errs twice as much as another by chance,
    so that they are judged together, each tensor in parts of its largest element.
    """
    kinds = {}
    for result in results:
        for name, tensor in result.items():
            kinds.setdefault(name.rpartition(".")[2], []).append(tensor.double())
    return kinds


@cases
def test_with_gradients_snake_is_the_only_change(project, side):
    fused = accelerate(make(project, side))
    inside = [module for module in fused.modules() if isinstance(module, Accelerated) and module is not fused]
    assert len(inside) == 22 and {type(module).__name__ for module in inside} <= {"Snake1d", "SnakeBeta"}


@cases
def test_frozen_weights_run_the_copy_without_no_grad(project, side):
    plain, fused = make(project, side).requires_grad_(False), accelerate(make(project, side).requires_grad_(False))
    x = signal(side)
    got = fused(x)
    close(got, plain(x))
    assert copied(fused) is not None and got.is_contiguous() and not got.requires_grad
    gradient = torch.autograd.grad(fused(x.requires_grad_()).sum(), x)[0]
    close(gradient, torch.autograd.grad(plain(x).sum(), x)[0])


@cases
def test_tiles_and_the_whole_are_the_same(project, side):
    fused = accelerate(make(project, side, torch.float64))
    x = signal(side, 2, 21, torch.float64)
    whole = run(fused, x)
    tiled = [layer for layer in copied(fused).modules() if isinstance(layer, Chain) and layer.tile is not None]
    assert len(tiled) == 3
    for tile in (7, 64):
        for layer in tiled:
            layer.tile = tile
        torch.testing.assert_close(run(fused, x), whole, rtol=0, atol=1e-12)


def changed_in_place(module):
    with torch.no_grad():
        next(p for name, p in module.named_parameters() if name.endswith("alpha")).mul_(1.5)


def stepped(module):
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for parameter in module.parameters():
        parameter.grad = torch.cos(parameter.detach())
    optimizer.step()
    optimizer.zero_grad()


def loaded(module, **options):
    values = {name: 0.9 * tensor for name, tensor in module.state_dict().items()}
    module.load_state_dict(values, **options)


def of_inner_layers(module, change):
    for layer in list(module.modules()):
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            change(layer)


def replaced(module):
    layer = next(layer for layer in module.modules() if isinstance(layer, nn.Conv1d))
    layer.bias = nn.Parameter(layer.bias.detach() + 1)


CHANGES = {
    "in place": changed_in_place,
    "in place, in inference mode": torch.inference_mode()(changed_in_place),
    "optimizer": stepped,
    "load_state_dict": loaded,
    "load_state_dict, assigned": lambda module: loaded(module, assign=True),
    "a new parameter": replaced,
    "a layer to another dtype and back": lambda module: of_inner_layers(module, lambda layer: layer.bfloat16().float()),
    "remove_weight_norm": lambda module: of_inner_layers(module, remove_weight_norm),
}


@pytest.mark.parametrize("project", ["diffusers", "tools"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changes_of_the_weights_are_noticed(project, change):
    plain, fused = make(project, "decoder"), accelerate(make(project, "decoder"))
    x = signal("decoder")
    before = run(fused, x)
    for module in (plain, fused):
        change(module)
    got = run(fused, x)
    close(got, run(plain, x))
    assert copied(fused) is not None
    assert (change is CHANGES["remove_weight_norm"]) == torch.allclose(got, before, atol=1e-5)


def test_without_a_change_nothing_is_folded_again_and_after_one_it_lies_where_it_lay():
    """A CUDA graph reads the copy by its address."""
    fused = accelerate(make("diffusers", "decoder"))
    run(fused, signal("decoder"))
    kept, places = fused._presto_kept, [p.data_ptr() for p in copied(fused).parameters()]
    with torch.inference_mode():
        fused(signal("decoder", 1, 3))
    assert fused._presto_kept is kept
    changed_in_place(fused)
    assert fused._presto_reads() is kept.chain is copied(fused)  # what `capture` asks before it replays
    assert fused._presto_kept is not kept
    assert [p.data_ptr() for p in copied(fused).parameters()] == places
    wanted = make("diffusers", "decoder")
    changed_in_place(wanted)
    close(run(fused, signal("decoder")), run(wanted, signal("decoder")))


@dtypes
def test_a_copy_made_in_inference_mode_serves_everywhere(dtype):
    plain, fused = make("diffusers", "decoder", dtype), accelerate(make("diffusers", "decoder", dtype))
    x = signal("decoder", dtype=dtype)
    with torch.inference_mode():
        first = fused(x)
    assert torch.equal(run(fused, x), first)
    changed_in_place(fused)
    changed_in_place(plain)
    torch.testing.assert_close(run(fused, x), run(plain, x), rtol=0.1, atol=0.1)


def test_other_tensors_for_one_call_are_noticed():
    plain, fused = make("diffusers", "decoder"), accelerate(make("diffusers", "decoder"))
    x, others = signal("decoder"), {name: 0.9 * p.detach() for name, p in plain.named_parameters()}
    usual = run(fused, x)
    with torch.no_grad():
        close(torch.func.functional_call(fused, others, (x,)), torch.func.functional_call(plain, others, (x,)))
    assert torch.equal(run(fused, x), usual)


def test_to_lets_the_copy_go():
    plain, fused = make("diffusers", "decoder"), nn.Sequential(accelerate(make("diffusers", "decoder")))
    run(fused, signal("decoder"))
    fused.double()
    assert copied(fused[0]) is None
    x = signal("decoder", dtype=torch.float64)
    torch.testing.assert_close(run(fused, x), run(plain.double(), x), rtol=0, atol=1e-12)


@pytest.mark.covers("copies, hooks")
@cases
def test_restore_is_bitwise_and_the_state_dict_is_theirs(project, side):
    plain, fused = make(project, side), make(project, side)
    own = type(fused)
    x = signal(side)
    accelerate(fused)
    run(fused, x)
    wanted, got = plain.state_dict(), fused.state_dict()
    assert list(got) == list(wanted) and all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert [name for name, _ in fused.named_modules()] == [name for name, _ in plain.named_modules()]
    assert isinstance(fused, own) and accelerate(fused) is fused
    restore(fused)
    assert type(fused) is own and not [name for name in fused.__dict__ if name.startswith("_presto")]
    assert torch.equal(run(fused, x), run(plain, x))
    leaf, other = (x.clone().requires_grad_() for _ in range(2))
    fused(leaf).sum().backward()
    plain(other).sum().backward()
    assert torch.equal(leaf.grad, other.grad)


@pytest.mark.covers("copies, hooks")
@cases
@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_and_pickles_are_accelerated_and_begin_without_the_copy(project, side, copy_of):
    fused, x = accelerate(make(project, side)), signal(side)
    wanted = run(fused, x)  # as with the original, a deep copy needs a call before
    other = copy_of(fused)
    assert isinstance(other, Accelerated) and copied(other) is None and copied(fused) is not None
    assert torch.equal(run(other, x), wanted)
    changed_in_place(fused)
    assert torch.equal(run(other, x), wanted)


@cases
@pytest.mark.parametrize("norm", ["parametrized", "none"])
def test_other_forms_of_weight_norm(project, side, norm):
    def other_norm(layer):
        remove_weight_norm(layer)
        if norm == "parametrized":
            parametrizations.weight_norm(layer)

    modules = [make(project, side, dtype) for dtype in (torch.bfloat16, torch.bfloat16, torch.bfloat16)]
    for module in modules:
        of_inner_layers(module, other_norm)
    plain, fused, wide = modules
    x = signal(side, dtype=torch.bfloat16)
    got = run(accelerate(fused), x)
    assert copied(fused) is not None
    wanted = run(wide.double(), x.double())
    check([within("output", got, wanted, run(plain, x), rowwise=False, eps=torch.finfo(torch.bfloat16).eps)])


class LowRank(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.a = nn.Parameter(0.1 * torch.ones(weight.shape[0], 1, 1))

    def forward(self, weight):
        return weight + self.a


class Wrapped(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return 2 * self.base(x)


def first_convolution(module):
    return next((path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Conv1d))


def adapted(module):
    layer = first_convolution(module)[1]
    remove_weight_norm(layer)
    parametrize.register_parametrization(layer, "weight", LowRank(layer.weight))


def wrapped(module):
    path, layer = first_convolution(module)
    module.set_submodule(path, Wrapped(layer))


def replaced_forward(module):
    layer = first_convolution(module)[1]
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def with_a_sine(module):
    units = [unit for unit in module.modules() if type(unit).__name__ in ("ResidualUnit", "OobleckResidualUnit")]
    (units[0].layers if hasattr(units[0], "layers") else units[0].snake1).append(nn.Tanh())


def padded_otherwise(module):
    first_convolution(module)[1].padding_mode = "circular"
    first_convolution(module)[1]._reversed_padding_repeated_twice = [3, 3]


@pytest.mark.covers("adapters")
@pytest.mark.parametrize("early", [False, True], ids=["accelerated", "before"])
@pytest.mark.parametrize("project", ["diffusers", "tools"])
@pytest.mark.parametrize("change", [adapted, wrapped, replaced_forward])
def test_adapters_and_replaced_layers_run_as_the_original_does(project, change, early):
    plain, fused = make(project, "decoder"), make(project, "decoder")
    x = signal("decoder")
    if early:
        change(fused)
        accelerate(fused)
    else:
        run(accelerate(fused), x)
        change(fused)
    unchanged = run(plain, x)
    change(plain)
    got = run(fused, x)
    close(got, run(plain, x))
    assert not torch.allclose(got, unchanged, atol=1e-3)
    assert passed_on(fused) if isinstance(fused, Accelerated) and "_presto" in fused.__dict__ else early


def test_hooks_inside_are_called():
    fused = accelerate(make("diffusers", "decoder"))
    x, seen = signal("decoder"), []
    wanted = run(fused, x)
    hook = fused.block[1].res_unit2.snake1.register_forward_hook(lambda *given: seen.append(given[2].shape))
    close(run(fused, x), wanted)
    assert len(seen) == 1 and passed_on(fused) == {"a hook on a module inside"} and copied(fused) is None
    hook.remove()
    fused.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    assert torch.equal(run(fused, x), wanted) and len(seen) == 2 and fused._presto.passed_on.total() == 1


def reasons(module):
    return {found.why_not for found in find(module) if found.path == ""}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_snake": False}, "an ELU"),
        ({"use_nearest_upsample": True}, "an Upsample"),
        ({"strides": [2, 3, 6]}, "not all even"),
    ],
)
def test_what_does_not_fit_says_why_and_is_left_alone(options, words):
    module = make("tools", "decoder", **options)
    (why,) = reasons(module)
    assert words in why
    x = signal("decoder")
    wanted = run(module, x)
    accelerate(module)
    assert not isinstance(module, Accelerated)
    close(run(module, x), wanted)


@pytest.mark.parametrize("change", [with_a_sine, padded_otherwise])
def test_a_layer_too_much_or_another_padding_does_not_fit(change):
    module = make("tools", "decoder")
    assert reasons(module) == {None}
    change(module)
    assert None not in reasons(module)


def test_a_final_tanh():
    plain, fused = make("tools", "decoder", final_tanh=True), accelerate(make("tools", "decoder", final_tanh=True))
    x = signal("decoder")
    got = run(fused, x)
    close(got, run(plain, x))
    assert copied(fused) is not None and got.abs().max() < 1


def test_snakes_that_hold_no_logarithms_inside_are_left_to_themselves():
    plain, fused = make("diffusers", "decoder"), accelerate(make("diffusers", "decoder"))
    for module in (plain, fused):
        for layer in module.modules():
            if type(layer).__name__ == "Snake1d":
                layer.logscale = False
                layer.beta.data.add_(2)
    close(run(fused, signal("decoder")), run(plain, signal("decoder")))
    assert "holds alpha and beta themselves" in " ".join(passed_on(fused))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, LATENTS + 1, 5),
        torch.zeros(2, LATENTS, 5, dtype=torch.float64),
        torch.zeros(2, LATENTS, 5, dtype=torch.int64),
        torch.zeros(2, LATENTS, 0),
        torch.zeros(5),
        None,
    ],
    ids=["channels", "dtype", "integers", "empty", "axes", "no tensor"],
)
def test_bad_inputs_get_the_words_of_the_original(x):
    plain, fused = make("diffusers", "decoder"), accelerate(make("diffusers", "decoder"))
    words = []
    for module in (plain, fused):
        with pytest.raises(Exception) as error:
            run(module, x)
        words.append((type(error.value), str(error.value)))
    assert words[0] == words[1]


def test_audio_shorter_than_a_latent_gets_the_words_of_the_original():
    for module in (make("diffusers", "encoder"), accelerate(make("diffusers", "encoder"))):
        with pytest.raises(RuntimeError, match="Kernel size"):
            run(module, torch.zeros(1, 2, HOP - 1))


def test_arguments_by_name_and_autocast():
    plain, fused = make("diffusers", "decoder"), accelerate(make("diffusers", "decoder"))
    x = signal("decoder")
    with torch.no_grad():
        close(fused(hidden_state=x), plain(hidden_state=x))
        with torch.autocast("cpu", torch.bfloat16):
            got, wanted = fused(x), plain(x)
    assert got.dtype == wanted.dtype == torch.bfloat16 and passed_on(fused) == {"autocast"}
    torch.testing.assert_close(got, wanted, rtol=0.1, atol=0.1)


def test_transforms_run_the_original():
    plain, fused = make("diffusers", "decoder"), accelerate(make("diffusers", "decoder"))
    x = signal("decoder").unsqueeze(1)
    with torch.no_grad():
        close(torch.func.vmap(fused)(x), torch.func.vmap(plain)(x))
        close(torch.func.jvp(fused, (x[0],), (x[1],))[1], torch.func.jvp(plain, (x[0],), (x[1],))[1])


def test_compiled_it_is_one_graph():
    small = {"strides": [2], "multiples": [1]}
    plain, fused = make("diffusers", "decoder", **small), accelerate(make("diffusers", "decoder", **small))
    for module in (plain, fused):
        of_inner_layers(module, remove_weight_norm)
    x = signal("decoder")
    close(run(fused, x), run(plain, x))
    close(run(torch.compile(fused, backend="eager", fullgraph=True), x), run(plain, x))


def test_the_whole_autoencoder_of_diffusers():
    from diffusers import AutoencoderOobleck

    def built():
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            module = AutoencoderOobleck(8, [2, 4, 6], [1, 2, 4], 12, LATENTS, 2)
        move(module)
        return module.eval()

    plain, fused = built(), accelerate(built())
    audio = signal("encoder", 2, 9)
    with torch.no_grad():
        latents = plain.encode(audio).latent_dist.mode()
        close(fused.encode(audio).latent_dist.mode(), latents)
        close(fused.decode(latents).sample, plain.decode(latents).sample)
    assert copied(fused.encoder) is not None and copied(fused.decoder) is not None
    report = str(accelerate_report(fused))
    assert "1 OobleckDecoder" in report and "one more copy of the weights" in " ".join(report.split())
    restore(fused.decoder)
    assert copied(fused.decoder) is None and copied(fused.encoder) is not None


def snake_of(project, channels, logarithms):
    torch.manual_seed(3)
    if project == "diffusers":
        from diffusers.models.autoencoders.autoencoder_oobleck import Snake1d

        module = Snake1d(channels, logscale=logarithms)
    else:
        module = peers.stable_audio_tools().blocks.SnakeBeta(channels, alpha_logscale=logarithms)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.rand_like(parameter) + 0.1)
    return module


@pytest.mark.parametrize("project", ["diffusers", "tools"])
@pytest.mark.parametrize("logarithms", [True, False])
@pytest.mark.parametrize(
    ("weights", "of_x"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)],
)
def test_snake_by_itself(project, logarithms, weights, of_x):
    results = []
    for which in ("fused", "wide", "plain"):
        module = snake_of(project, 5, logarithms).to(weights)
        module = accelerate(module) if which == "fused" else module.double() if which == "wide" else module
        x = torch.randn(2, 5, 33, generator=torch.Generator().manual_seed(4)).to(of_x)
        x = (x.double() if which == "wide" else x).requires_grad_()
        y = module(x)
        (y * torch.cos(torch.arange(33, dtype=y.dtype))).sum().backward()
        results.append({"y": y, "x": x.grad} | {name: p.grad for name, p in module.named_parameters()})
    fused, wide, plain = results
    assert isinstance(module, nn.Module) and all(fused[name].dtype == plain[name].dtype for name in plain)
    eps = torch.finfo(of_x).eps
    check([within(name, fused[name], wide[name], plain[name], rowwise=False, eps=eps) for name in wide])


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 5, 1), (2, 5), (2, 5, 0)])
def test_snake_of_other_shapes(shape):
    plain, fused = snake_of("diffusers", 5, True), accelerate(snake_of("diffusers", 5, True))
    x = torch.randn(shape)
    close(fused(x), plain(x))
