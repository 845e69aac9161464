"""Hidden states behind chosen blocks: what discriminators and `distill inspect` look at."""

import pytest
import torch
import torch.nn.functional as F
from small_models import make_dit, make_inputs, reference_of, small_config

from presto_models import EDM

CONFIG = small_config()


def test_the_last_one_is_what_the_final_layer_reads():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    hidden = dit(*inputs.args, blocks=(0, 1, 3, 5), hidden_after=(1, 5))
    assert [h.shape for h in hidden] == [(3, 37, CONFIG.dim)] * 2
    budget = dit.condition.budget_rows((4,))
    modulation = dit._modulation(
        inputs.conditioning, sigma=inputs.sigma, budget=budget, sigma_to=None, guidance=None, blocks=()
    )
    scale, shift = modulation[-1].unbind(1)
    h = F.layer_norm(hidden[1], (CONFIG.dim,), eps=CONFIG.norm_eps) * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(dit.proj_out(h), dit(*inputs.args, blocks=(0, 1, 3, 5)), rtol=1e-9, atol=1e-11)


def test_what_lies_behind_is_not_computed():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    ran = []
    for index, block in enumerate(dit.blocks):
        block.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    (hidden,) = dit(*inputs.args, hidden_after=(2,))
    assert ran == [0, 1, 2]
    full = dit(*inputs.args, hidden_after=(2, 5))
    assert torch.equal(hidden, full[0])
    assert not torch.equal(full[0], full[1])


def test_edm_scales_what_goes_in():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    c_in = 1 / (inputs.sigma**2 + 0.25).sqrt()
    (hidden,) = EDM(dit).hidden(*inputs.args, (3,))
    expected = dit(inputs.x * c_in[:, None, None], inputs.sigma, inputs.conditioning, hidden_after=(3,))[0]
    assert torch.equal(hidden, expected)


def test_the_plain_model_has_the_same():
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    for blocks in (None, (0, 1, 3, 5)):
        expected = dit(*inputs.args, blocks=blocks, hidden_after=(1, 3))
        found = reference_of(dit)(*inputs.args, blocks=blocks, hidden_after=(1, 3))
        assert len(found) == 2
        for ours, plain in zip(expected, found, strict=True):
            torch.testing.assert_close(plain, ours, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("given", [{"hidden_after": ()}, {"hidden_after": (3, 1)}, {"hidden_after": (6,)}])
def test_a_block_that_does_not_run_is_refused(given):
    dit, inputs = make_dit(CONFIG), make_inputs(CONFIG)
    with pytest.raises(ValueError, match="hidden_after must be increasing indices of blocks that run"):
        dit(*inputs.args, **given)
    with pytest.raises(ValueError, match="mixed budgets"):
        dit(*inputs.args, budgets=(6, 4, 2), hidden_after=(1,))
