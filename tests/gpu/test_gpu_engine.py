"""The engine on a GPU: one graph a plan, replayed with other seeds and text, and nothing allocated or asked."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "presto_models"))
from small_models import small_config
from small_pipeline import same, small_pipeline

from presto_models.diffusion.sampling import Sampling

SAMPLERS = ("heun", "dpmpp_2s", "ddim", "pingpong")


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline(device="cuda")


def inputs(pipeline, prompts=("slow organ", "harp"), seed=3):
    seeds = torch.arange(seed, seed + len(prompts), device="cuda")
    return pipeline.conditioner(list(prompts), None), seeds


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_replay_is_the_stages_run_one_by_one(pipeline, sampler, guidance):
    plan = pipeline.plan(0.3, batch=2, sampler=sampler, guidance=guidance, stereo=True)
    for prompts, seed in ((("slow organ", "harp"), 3), (("", "flute and organ"), 3), (("slow organ", "harp"), 8)):
        given = inputs(pipeline, prompts, seed)
        captured = pipeline.engine(plan, *given).clone()
        with torch.no_grad():
            same(captured, pipeline.engine.walk(plan, *given))
        assert torch.equal(captured, pipeline.engine(plan, *given))
    pipeline.engine.forget()


@pytest.mark.parametrize("kind", ["cm", "ctm"])
def test_students_replay_what_their_stages_make(kind):
    sampler = "pingpong" if kind == "cm" else kind
    sampling = Sampling(sampler, 4, sigma_min=0.01, spacing="interval", gamma=0.5)
    config = small_config(takes_sigma_to=kind == "ctm", takes_guidance=True)
    student = small_pipeline(device="cuda", dit=config, parameterization=kind, sampling=sampling)
    plan = student.plan(0.3, batch=2, guidance=3.0)
    for seed in (3, 8):
        given = inputs(student, seed=seed)
        captured = student.engine(plan, *given).clone()
        with torch.no_grad():
            same(captured, student.engine.walk(plan, *given))


def test_one_graph_a_plan_and_the_least_recently_used_goes(pipeline, monkeypatch):
    engine, made = pipeline.engine, []
    original = torch.cuda.CUDAGraph

    def counting(*args, **kwargs):
        made.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", counting)
    monkeypatch.setattr(engine, "max_graphs", 2)
    engine.forget()
    a, b, c = (pipeline.plan(seconds, batch=2, steps=2) for seconds in (0.1, 0.2, 0.3))
    given = inputs(pipeline)
    for plan, graphs in ((a, 1), (b, 2), (a, 2), (c, 3), (a, 3), (b, 4)):
        engine(plan, *given)
        assert len(made) == graphs
    assert engine.captured == (a, b)
    engine(replace(b, length=b.length + 1), *given)
    assert len(made) == 5
    engine.forget()
    assert engine.captured == ()


def test_after_capture_nothing_is_allocated_and_nothing_is_asked(pipeline):
    plan = pipeline.plan(0.3, batch=2, stereo=True)
    given, other = inputs(pipeline), inputs(pipeline, ("flute", "organ"), 50)
    pipeline.engine(plan, *given)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for each in (given, other, given):
            pipeline.engine(plan, *each)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    after = torch.cuda.memory_stats()
    for name in ("allocation.all.allocated", "num_device_alloc", "reserved_bytes.all.current"):
        assert after.get(name) == before.get(name), name
    pipeline.engine.forget()


def test_graphs_of_one_pool_leave_each_others_results_alone(pipeline):
    engine, given = pipeline.engine, inputs(pipeline)
    plans = [pipeline.plan(seconds, batch=2, steps=2, stereo=True) for seconds in (0.3, 0.2, 0.25)]
    results = [engine(plan, *given) for plan in plans]
    kept = [result.clone() for result in results]
    for plan in (*plans, *reversed(plans)):
        engine(plan, *given)
    assert all(torch.equal(a, b) for a, b in zip(results, kept, strict=True))
    engine.forget()


def test_weights_changed_in_place_are_seen(pipeline):
    plan, given = pipeline.plan(0.1, batch=2, steps=2), inputs(pipeline)
    before = pipeline.engine(plan, *given).clone()
    bias = pipeline.dit.proj_out.bias
    bias.add_(0.5)
    changed = pipeline.engine(plan, *given).clone()
    bias.sub_(0.5)
    assert not torch.allclose(before, changed)
    same(pipeline.engine(plan, *given), before)
    pipeline.engine.forget()


def test_the_pipelines_waveforms_are_their_own(pipeline):
    make = {"seconds": 0.2, "stereo": True, "num_samples": 2}
    first = pipeline("slow organ", seed=1, **make)
    kept = first.waveform.clone()
    pipeline("harp", seed=2, **make)
    assert torch.equal(first.waveform, kept)
    assert torch.equal(pipeline("slow organ", seed=1, **make).waveform, kept)
    timed = pipeline("slow organ", seed=1, timings=True, **make)
    same(timed.waveform, kept)
    assert len(timed.timings.steps) == 3 and min(timed.timings.steps) > 0


def test_a_seed_is_the_same_noise_as_on_the_cpu(pipeline):
    plan, seeds = pipeline.plan(0.3, batch=2), torch.tensor([5, -(2**62)])
    on_cpu = small_pipeline().engine.noise(plan, seeds)
    torch.testing.assert_close(pipeline.engine.noise(plan, seeds.cuda()).cpu(), on_cpu, rtol=0, atol=80 * 8 * 2.0**-21)


def test_bf16(pipeline):
    half = small_pipeline(device="cuda")
    half.dit.bfloat16()
    made = half("slow organ", seconds=0.2, seed=1, guidance=1.0)
    assert made.waveform.dtype == torch.float32 and made.waveform.isfinite().all()
