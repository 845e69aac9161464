"""DiT formulas against PyTorch's own counter and against the tensors that really pass through the ops."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import presto_models.dit
from bench import counting_dit
from bench.generation import Generation, Implementation, Setup


@pytest.fixture(scope="module")
def generation():
    with torch.no_grad():
        return Generation(Setup("tiny", 2, "fp32", 3.0, torch.device("cpu")))


@pytest.mark.parametrize("side", ["full", "scheduled"])
def test_model_flops_are_those_that_pytorch_counts(generation, side):
    made = Implementation(generation.reference, getattr(generation, side))
    # The plain implementation of attention is made of matrix products, which the counter knows on every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        generation.steps(made)[0]()
    assert counting_dit.model_flops(generation.counts(made.blocks(0))) == counter.get_total_flops()


def test_seam_bytes_are_those_of_the_tensors_the_fused_ops_get_and_give(generation, monkeypatch):
    moved = 0

    def counted(op):
        def call(*args, **kwargs):
            nonlocal moved
            results = op(*args, **kwargs)
            outputs = results if isinstance(results, tuple) else (results,)
            tensors = [t for t in (*args, *kwargs.values(), *outputs) if isinstance(t, torch.Tensor)]
            if outputs[0].shape[-1] == generation.config.dim:  # not a head's norm
                moved += sum(t.numel() * t.element_size() for t in tensors)
            return results

        return call

    for name in ("adaln_modulate", "gated_residual_adaln"):
        monkeypatch.setattr(presto_models.dit, name, counted(getattr(presto_models.dit, name)))
    made = Implementation(generation.presto, generation.scheduled)
    with torch.no_grad():
        generation.steps(made)[0]()
    assert generation.counts(made.blocks(0))["seams"].bytes == moved


def test_a_step_with_fewer_blocks_costs_in_proportion(generation):
    eight, four = (counting_dit.model_flops(generation.counts(blocks)) for blocks in (8, 4))
    ends = generation.counts(8)["proj in, out"].flops
    assert eight - ends == 2 * (four - ends)


def test_paper_scale_is_one_and_a_half_teraflops_a_step():
    step = counting_dit.dit_step(
        presto_models.dit.DiTConfig.named("presto-32s"), batch=1, length=1379, text_tokens=64, blocks=24, itemsize=2
    )
    assert counting_dit.model_flops(step) == pytest.approx(1.445e12, rel=0.01)
