"""DiT formulas against PyTorch's own counter and against the tensors that really pass through the ops."""

from collections import Counter

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


def test_bytes_are_those_of_the_tensors_that_pass_by(generation, monkeypatch):
    """Every kind but seams, counted by what the modules and ops are really given; small vectors and tables apart."""
    moved = Counter()
    kinds = {"qkv": "qkv", "up": "mlp up", "down": "mlp down", "proj_in": "proj in, out", "proj_out": "proj in, out"}
    kinds |= {"q": "out, cross q, cross out", "out": "out, cross q, cross out"}
    of_module = {module: name.split(".")[-1] for name, module in generation.presto.named_modules()}

    def size(*tensors):
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def linear(module, arguments, output):
        if isinstance(module, torch.nn.Linear):
            moved[kinds[of_module[module]]] += size(*arguments, *module.parameters(), output)

    def counted(name, count):
        op = getattr(presto_models.dit, name)

        def call(*args, **kwargs):
            result = op(*args, **kwargs)
            for kind, bytes_moved in count(args, result).items():
                moved[kind] += bytes_moved
            return result

        monkeypatch.setattr(presto_models.dit, name, call)

    # q and k are normed (read and written), then attention reads them and v and writes y.
    counted(
        "qk_norm_rope_attention",
        lambda args, y: {"qk norm, rotary": 2 * size(*args[:2]), "self-attention": size(*args[:3], y)},
    )
    counted("qk_norm_rope", lambda args, result: {"qk norm, rotary": size(args[0], result[0])})
    counted("attention", lambda args, y: {"cross-attention": size(*args[:3], y)})
    counted("swiglu", lambda args, y: {"swiglu": size(args[0], y)})
    made = Implementation(generation.presto, generation.scheduled)
    handle = torch.nn.modules.module.register_module_forward_hook(linear)
    try:
        with torch.no_grad():
            generation.steps(made)[0]()
    finally:
        handle.remove()
    counts = generation.counts(made.blocks(0))
    assert moved == {kind: count.bytes for kind, count in counts.items() if kind != "seams"}


def test_bytes_and_operations_of_a_toy_step_by_hand():
    """Two rows of width 4, one block: small enough to count on paper."""
    config = presto_models.dit.DiTConfig(
        num_blocks=1, dim=4, num_heads=2, mlp_dim=6, in_channels=3, text_dim=5, pooled_dim=0, keep_last=0
    )
    step = counting_dit.dit_step(config, batch=1, length=2, text_tokens=3, blocks=1, itemsize=2)
    found = {kind: (count.bytes // 2, count.flops) for kind, count in step.items()}  # elements, operations
    assert found["qkv"] == (2 * 4 + 4 * 12 + 2 * 12, 2 * 2 * 4 * 12)
    assert found["out, cross q, cross out"] == (3 * (8 + 16 + 8), 3 * 64)
    assert found["mlp up"] == (8 + 48 + 24, 192) and found["mlp down"] == (12 + 24 + 8, 96)
    assert found["swiglu"] == (24 + 12, 5 * 12)
    assert found["self-attention"] == (4 * 8, 2 * 2 * (2 * 2 * 4))  # two products of [2, 4] and [4, 2]
    assert found["cross-attention"] == (2 * 8 + 2 * 12, 2 * 2 * (2 * 3 * 4))
    assert found["qk norm, rotary"][0] == 3 * 2 * 8  # q, k and cross-attention's q, each read and written
    assert found["proj in, out"] == ((6 + 12 + 8 + 4) + (8 + 12 + 6 + 3), 2 * 2 * 3 * 4 * 2)  # the biases, 4 and 3, too


def test_a_step_with_fewer_blocks_costs_in_proportion(generation):
    eight, four = (counting_dit.model_flops(generation.counts(blocks)) for blocks in (8, 4))
    ends = generation.counts(8)["proj in, out"].flops
    assert eight - ends == 2 * (four - ends)


def test_paper_scale_is_one_and_a_half_teraflops_a_step():
    step = counting_dit.dit_step(
        presto_models.dit.DiTConfig.named("presto-32s"), batch=1, length=1379, text_tokens=64, blocks=24, itemsize=2
    )
    assert counting_dit.model_flops(step) == pytest.approx(1.445e12, rel=0.01)
