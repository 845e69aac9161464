"""The fused transformer against the plain one."""

import dataclasses

import pytest
import torch
from small_models import make_dit, make_inputs, reference_of, small_config

from presto_kernels import LayerSchedule
from presto_kernels.testing import check, within
from presto_models import DiT, DiTConfig, ReferenceDiT

CONFIG = small_config()


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def students(config):
    """A config of a student that is told where to go and how strongly to be guided, and its two arguments."""
    config = dataclasses.replace(config, takes_sigma_to=True, takes_guidance=True)
    extras = {"sigma_to": torch.tensor([1.0, 0.0, 0.02]).double(), "guidance": torch.tensor([1.0, 0.0, 7.5]).double()}
    return config, extras


@pytest.mark.parametrize("length", [1, 2, 37])
@pytest.mark.parametrize("blocks", [None, (0, 1, 5), (3,), (1, 2, 4)])
def test_it_is_the_plain_model_in_float64(blocks, length):
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG, length=length)
    close(dit(*inputs.args, blocks=blocks), reference_of(dit)(*inputs.args, blocks=blocks))


@pytest.mark.parametrize("changes", [{"pooled_dim": 0}, {"rotary_dim": None}, {"num_blocks": 1}, {"num_heads": 1}])
def test_it_is_the_plain_model_in_other_shapes(changes):
    config = dataclasses.replace(CONFIG, **changes)
    dit, inputs = make_dit(config), make_inputs(config)
    close(dit(*inputs.args), reference_of(dit)(*inputs.args))


def test_it_is_the_plain_model_for_students():
    config, extras = students(CONFIG)
    dit, inputs = make_dit(config), make_inputs(config)
    y = dit(*inputs.args, **extras)
    close(y, reference_of(dit)(*inputs.args, **extras))
    for name, value in extras.items():
        assert not torch.equal(dit(*inputs.args, **(extras | {name: value + 0.5})), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("blocks", [None, (0, 1, 5)])
def test_it_errs_at_most_twice_as_much_as_plain_pytorch(dtype, blocks):
    config = DiTConfig.named("tiny")
    dit, inputs = make_dit(config, dtype), make_inputs(config, length=87)
    rounded = inputs.to(dtype)
    with torch.no_grad():
        oracle = reference_of(dit, torch.float64)(*inputs.args, blocks=blocks)
        plain = reference_of(dit)(*rounded.args, blocks=blocks)
        y = dit(*rounded.args, blocks=blocks)
    assert y.dtype == dtype
    check([within("F", y, oracle, plain, rowwise=False, eps=torch.finfo(dtype).eps)])


def test_one_gate_with_its_bias_gone_is_beyond_that_tolerance():
    config = DiTConfig.named("tiny")
    dit, inputs = make_dit(config, torch.bfloat16), make_inputs(config, length=87)
    rounded = inputs.to(torch.bfloat16)
    with torch.no_grad():
        oracle = reference_of(dit, torch.float64)(*inputs.args)
        plain = reference_of(dit)(*rounded.args)
        dit.modulation.bias.unflatten(0, (-1, config.dim))[6 * 3 + 5] = 0  # SwiGLU's gate in block 3
        outcome = within("F", dit(*rounded.args), oracle, plain, rowwise=False, eps=2.0**-8)
    assert not outcome.ok


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_keeping_all_blocks_is_bitwise_the_plain_fused_model(dtype):
    dit, inputs = make_dit(CONFIG, dtype), make_inputs(CONFIG).to(dtype)
    y = dit(*inputs.args)
    assert torch.equal(dit(*inputs.args, blocks=tuple(range(6))), y)
    assert torch.equal(dit(*inputs.args, blocks=LayerSchedule.full(6).kept(3.0)), y)
    assert torch.equal(dit(*inputs.args, budgets=(6, 6, 6)), y)
    with torch.no_grad():
        dit.condition.budget.normal_()
    assert torch.equal(dit(*inputs.args, blocks=tuple(range(6))), y)


def test_the_model_knows_its_budget():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    y = dit(*inputs.args, blocks=(0, 5))
    with torch.no_grad():
        dit.condition.budget[2] += 1  # of three blocks
    assert torch.equal(dit(*inputs.args, blocks=(0, 5)), y)
    with torch.no_grad():
        dit.condition.budget[1] += 1
    assert not torch.equal(dit(*inputs.args, blocks=(0, 5)), y)


def test_every_block_given_runs_and_no_other():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    ran = []
    for index, block in enumerate(dit.blocks):
        block.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    dit(*inputs.args, blocks=(1, 4))
    assert ran == [1, 4]


@pytest.mark.parametrize("blocks", [None, (0, 1, 5)])
def test_gradients_are_the_plain_models(blocks):
    config, extras = students(CONFIG)
    dit, inputs = make_dit(config), make_inputs(config)
    reference = reference_of(dit)
    weight = torch.randn_like(inputs.x)
    leaves = [inputs.x, inputs.sigma, inputs.conditioning.tokens, inputs.conditioning.pooled, *extras.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    results = []
    for model in (dit, reference):
        (model(*inputs.args, blocks=blocks, **extras) * weight).sum().backward()
        results.append([leaf.grad for leaf in leaves] + [p.grad for _, p in sorted(model.named_parameters())])
        for leaf in leaves:
            leaf.grad = None
    names = [*map(str, range(len(leaves))), *sorted(dict(dit.named_parameters()))]
    for name, fused, plain in zip(names, *results, strict=True):
        if plain is None:  # trained rows of budgets have a gradient of zero in a full batch, for which DDP would wait
            assert fused is None or (name == "condition.budget" and not fused.any()), name
        else:
            torch.testing.assert_close(fused, plain, rtol=1e-8, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_gradients_repeat_bitwise():
    dit, inputs = make_dit(CONFIG, torch.bfloat16), make_inputs(CONFIG).to(torch.bfloat16)
    runs = []
    for _ in range(2):
        dit.zero_grad()
        dit(*inputs.args).float().square().sum().backward()
        runs.append([p.grad for p in dit.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_one_state_dict_for_both_models():
    fused, plain = DiT(CONFIG).state_dict(), ReferenceDiT(CONFIG).state_dict()
    assert {name: value.shape for name, value in fused.items()} == {name: v.shape for name, v in plain.items()}


def test_a_fresh_model_starts_at_zero():
    dit, inputs = DiT(CONFIG), make_inputs(CONFIG).to(torch.float32)
    assert torch.count_nonzero(dit(*inputs.args)) == 0
    for name, parameter in dit.named_parameters():
        zero = name.startswith(("modulation.", "proj_out.")) or name.endswith(("cross_attention.out.weight", "budget"))
        assert (torch.count_nonzero(parameter) == 0) == zero, name


def test_a_fresh_student_starts_as_its_teacher():
    teacher, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    config, extras = students(CONFIG)
    student = DiT(config).double()
    missing = student.load_state_dict(teacher.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert torch.equal(student(*inputs.args, **extras), teacher(*inputs.args))


# Text.


def test_padding_is_as_good_as_absent():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    y = dit(*inputs.args)
    for sample, length in ((1, 3), (2, 7)):
        alone = inputs[sample : sample + 1]
        text = dataclasses.replace(alone.conditioning, tokens=alone.conditioning.tokens[:, :length], lengths=None)
        close(y[sample : sample + 1], dit(alone.x, alone.sigma, text))


def test_a_sample_without_text_gets_nothing_from_cross_attention():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    outputs = []
    for block in dit.blocks:
        block.cross_attention.register_forward_hook(lambda *args: outputs.append(args[2]))
    dit(*inputs.args)
    assert all(torch.count_nonzero(y[0]) == 0 and torch.count_nonzero(y[1:]) > 0 for y in outputs)


def test_attention_is_told_how_many_tokens_are_text():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    seen = []
    dit.blocks[0].cross_attention.register_forward_pre_hook(lambda _, args: seen.append(args[3]))
    dit(*inputs.args)
    assert seen[0] is inputs.conditioning.lengths and seen[0].tolist() == [0, 3, 7]


def test_no_text_by_length_is_no_text_by_zeros():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    zeros = dataclasses.replace(inputs.conditioning.null(), lengths=None)
    masked = dataclasses.replace(
        inputs.conditioning, pooled=zeros.pooled, lengths=torch.zeros_like(inputs.conditioning.lengths)
    )
    close(dit(inputs.x, inputs.sigma, masked), dit(inputs.x, inputs.sigma, zeros))


def test_what_hides_behind_the_padding_never_leaks():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    tokens = inputs.conditioning.tokens.clone()
    tokens[0], tokens[1, 3:] = torch.nan, torch.inf
    dirty = dataclasses.replace(inputs.conditioning, tokens=tokens)
    tokens.requires_grad_()
    y = dit(inputs.x, inputs.sigma, dirty)
    assert torch.equal(y, dit(*inputs.args))
    y.sum().backward()
    assert torch.count_nonzero(tokens.grad[0]) == 0 and torch.count_nonzero(tokens.grad[1, 3:]) == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in dit.parameters())


def test_lengths_are_clamped():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    wild = dataclasses.replace(inputs.conditioning, lengths=torch.tensor([-3, 3, 99], dtype=torch.int32))
    assert torch.equal(dit(inputs.x, inputs.sigma, wild), dit(*inputs.args))


# Positions.


def test_attention_sees_where_things_are():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    swapped = inputs.x.flip(1)
    assert not torch.allclose(dit(swapped, *inputs.args[1:]).flip(1), dit(*inputs.args), atol=1e-3)


# Errors and configs.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 37)}, "x must be"),
        ({"x": torch.zeros(3, 37, 6)}, "x must be"),
        ({"x": torch.zeros(3, 37, 5, dtype=torch.int64)}, "x must be"),
        ({"x": torch.zeros(2, 37, 5)}, "sigma must be"),
        ({"sigma": torch.tensor(1.0)}, "sigma must be"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    dit, inputs = make_dit(CONFIG), dataclasses.replace(make_inputs(CONFIG), **change)
    with pytest.raises(ValueError, match=message):
        dit(*inputs.args)


def test_conditioning_that_does_not_fit_is_refused():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    text = inputs.conditioning
    for wrong, message in (
        (text[:2], "conditioning.tokens"),
        (dataclasses.replace(text, tokens=torch.zeros(3, 7, 19)), "conditioning.tokens"),
        (dataclasses.replace(text, pooled=None), "conditioning.pooled"),
        (dataclasses.replace(text, pooled=torch.zeros(3, 13)), "conditioning.pooled"),
    ):
        with pytest.raises(ValueError, match=message):
            dit(inputs.x, inputs.sigma, wrong)


@pytest.mark.parametrize("blocks", [(), (0, 0), (1, 0), (0, 6), (-1, 0)])
def test_blocks_that_do_not_exist_are_refused(blocks):
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    with pytest.raises(ValueError, match="blocks must be"):
        dit(*inputs.args, blocks=blocks)


def test_conditions_are_taken_exactly_when_the_config_says_so():
    config, extras = students(CONFIG)
    inputs = make_inputs(CONFIG)
    for name, value in extras.items():
        with pytest.raises(ValueError, match=name):
            make_dit(CONFIG)(*inputs.args, **{name: value})
        with pytest.raises(ValueError, match=name):
            make_dit(config)(*inputs.args, **{n: v for n, v in extras.items() if n != name})


def test_blocks_and_budgets_exclude_each_other():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    with pytest.raises(ValueError, match="exclude each other"):
        dit(*inputs.args, blocks=(0, 5), budgets=(2, 2, 2))


def test_the_named_configs():
    config = DiTConfig.named("presto-32s")
    assert (config.num_blocks, config.dim, config.num_heads, config.head_dim, config.mlp_dim) == (
        24,
        1024,
        16,
        64,
        4096,
    )
    assert (config.in_channels, config.text_dim, config.nominal_latents, config.rotary_dim) == (64, 768, 1379, 64)
    tiny = DiTConfig.named("tiny")
    assert len(set(LayerSchedule.default(tiny.num_blocks).budgets)) == 4
    with pytest.raises(ValueError, match="presto-32s"):
        DiTConfig.named("huge")


def test_a_config_survives_a_plain_dict():
    assert DiTConfig.from_dict(CONFIG.to_dict()) == CONFIG


@pytest.mark.parametrize(
    "changes",
    [
        {"num_blocks": 0},
        {"num_heads": 5},
        {"rotary_dim": 5},
        {"rotary_dim": 18},
        {"rotary_dim": 0},
        {"pooled_dim": -1},
        {"noise_features": 7},
        {"keep_last": 7},
        {"keep_last": -1},
        {"norm_eps": 0.0},
        {"rotary_base": -1.0},
    ],
)
def test_configs_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes)).replace("num_heads", "dim")):
        small_config(**changes)
