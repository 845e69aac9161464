"""Painting, inversion and text held by the CUDA graph of an optimisation step."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "presto_models"))
from small_clap import RATE, save_clap
from small_pipeline import small_pipeline

from presto_models.ditto import ClapScorer, DittoOptions, Inpaint, Inversion, Loop, Outpaint, TextMatch, optimize


def controls(folder):
    recording = 0.1 * torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    reference = {"reference": recording, "sample_rate": RATE}
    return {
        "outpaint": Outpaint(overlap=0.2, **reference),
        "inpaint": Inpaint(gap=(0.4, 0.6), overlap=0.2, **reference),
        "loop": Loop(overlap=0.2, **reference),
        "loop alone": Loop(overlap=0.2),
        "inversion": Inversion(spectral=0.1, **reference),
        "text": TextMatch(ClapScorer.from_pretrained(folder, device="cuda"), "slow organ"),
    }


@pytest.mark.parametrize("name", ["outpaint", "inpaint", "loop", "loop alone", "inversion", "text", "fused text"])
def test_a_graph_holds_the_step(name, tmp_path):
    fusion = name == "fused text"
    folder = save_clap(tmp_path, fusion=fusion, truncation="fusion" if fusion else "rand_trunc")
    options = DittoOptions(steps=8, learning_rate=0.05, sampling_steps=2)  # the third step and later are replayed
    pipeline = small_pipeline(device="cuda")
    result = optimize(
        pipeline,
        controls(folder)[name.removeprefix("fused ")],
        prompt="slow organ",
        seconds=1.0,
        seed=3,
        options=options,
    )
    (outcome,) = result.outcomes.values()
    assert float(outcome.error) < float(outcome.before) and len(set(outcome.history[:, 0].tolist())) == 8
