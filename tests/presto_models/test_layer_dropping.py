"""Training batches of mixed layer budgets: the sorted-prefix path."""

import dataclasses

import pytest
import torch
from small_models import make_dit, make_inputs, small_config

from presto_kernels import LayerSchedule

CONFIG = small_config()
BUDGETS = [(6, 5, 3), (5, 5, 2), (6, 2, 2), (3, 3, 3), (4, 2, 2), (6, 6, 2)]


def alone(dit, inputs, budgets):
    """Each sample by itself through the uniform path."""
    config = dit.config
    rows = []
    for sample, budget in enumerate(budgets):
        kept = LayerSchedule(config.num_blocks, (), (budget,), config.keep_last).kept(1.0)
        rows.append(dit(*inputs[sample : sample + 1].args, blocks=kept))
    return torch.cat(rows)


@pytest.mark.parametrize("keep_last", [0, 1, 2])
@pytest.mark.parametrize("budgets", BUDGETS)
def test_a_mixed_batch_is_each_sample_alone(budgets, keep_last):
    dit, inputs = make_dit(small_config(keep_last=keep_last)), make_inputs(CONFIG)
    torch.testing.assert_close(dit(*inputs.args, budgets=budgets), alone(dit, inputs, budgets), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("keep_last", [0, 1, 2])
def test_and_so_are_its_gradients(keep_last):
    dit, inputs = make_dit(small_config(keep_last=keep_last)), make_inputs(CONFIG, batch=5)
    budgets = (6, 4, 4, 3, 2)
    weight = torch.randn_like(inputs.x)
    leaves = {"x": inputs.x, "sigma": inputs.sigma, "tokens": inputs.conditioning.tokens}
    leaves |= dict(dit.named_parameters())
    for leaf in leaves.values():
        leaf.requires_grad_()
    mixed = torch.autograd.grad((dit(*inputs.args, budgets=budgets) * weight).sum(), leaves.values(), allow_unused=True)
    single = torch.autograd.grad((alone(dit, inputs, budgets) * weight).sum(), leaves.values(), allow_unused=True)
    for name, a, b in zip(leaves, mixed, single, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_a_batch_of_one_budget_is_bitwise_the_uniform_path():
    dit, inputs = make_dit(CONFIG, torch.bfloat16), make_inputs(CONFIG).to(torch.bfloat16)
    assert torch.equal(dit(*inputs.args, budgets=(3, 3, 3)), dit(*inputs.args, blocks=(0, 1, 5)))


def test_work_is_done_for_the_samples_that_keep_a_block_and_no_others():
    dit, inputs = make_dit(small_config(keep_last=2)), make_inputs(CONFIG, batch=5)
    rows = {name: [0] * 6 for name in ("self_attention", "cross_attention", "mlp", "kv")}
    for index, block in enumerate(dit.blocks):
        for name in rows:
            module = block.cross_attention.kv if name == "kv" else getattr(block, name)

            def count(_, args, name=name, index=index):
                rows[name][index] += args[0].shape[0]

            module.register_forward_pre_hook(count)
    budgets = (6, 5, 3, 3, 2)
    dit(*inputs.args, budgets=budgets)
    for counted in rows.values():
        assert counted == [4, 2, 2, 1, 5, 5]
        assert sum(counted) == sum(budgets)


@pytest.mark.parametrize(
    ("budgets", "keep_last", "message"),
    [
        ((3, 6, 2), 1, "sort the samples"),
        ((6, 5), 1, "one entry per sample"),
        ((7, 6, 5), 1, "from 1 to num_blocks"),
        ((6, 5, 0), 0, "from 1 to num_blocks"),
        ((6, 5, 1), 2, "from 2 to num_blocks"),
    ],
)
def test_budgets_that_do_not_fit_are_refused(budgets, keep_last, message):
    dit, inputs = make_dit(small_config(keep_last=keep_last)), make_inputs(CONFIG)
    with pytest.raises(ValueError, match=message):
        dit(*inputs.args, budgets=budgets)


def test_the_order_the_error_suggests_works():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    budgets = [2, 6, 4]
    order = sorted(range(3), key=lambda b: -budgets[b])
    text = inputs.conditioning
    text = dataclasses.replace(text, tokens=text.tokens[order], pooled=text.pooled[order], lengths=text.lengths[order])
    y = dit(inputs.x[order], inputs.sigma[order], text, budgets=[budgets[b] for b in order])
    torch.testing.assert_close(y, alone(dit, inputs, budgets)[order], rtol=1e-9, atol=1e-11)
