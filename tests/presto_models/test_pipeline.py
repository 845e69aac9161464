"""Prompt to waveform: lengths, seeds, batches, files, and what is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import small_config
from small_pipeline import WordEncoder, same, small_pipeline

from presto_kernels import LayerSchedule
from presto_models import Conditioning, karras_sigmas
from presto_models.checkpoint import CheckpointError, load_weights, save_weights
from presto_models.diffusion.sampling import Sampling
from presto_models.diffusion_config import DiffusionConfig, load_diffusion
from presto_models.pipeline import PrestoPipeline

PIPELINE = small_pipeline()


@settings(max_examples=15, deadline=None)
@given(seconds=st.floats(1 / 8000, 0.3), stereo=st.booleans())
def test_the_length_is_exact(seconds, stereo):
    made = PIPELINE("organ", seconds=seconds, seed=0, stereo=stereo, steps=1, guidance=1.0)
    assert made.waveform.shape == (1, 1 + stereo, round(seconds * 8000))
    assert made.waveform.dtype == torch.float32 and made.waveform.is_contiguous()
    assert made.sample_rate == 8000


@pytest.mark.parametrize(("sampler", "calls"), [("heun", 5), ("dpmpp_2s", 5), ("ddim", 3), ("pingpong", 3)])
def test_model_calls(sampler, calls):
    count = 0
    forward = PIPELINE.dit.forward

    def counting(*args, **kwargs):
        nonlocal count
        count += 1
        return forward(*args, **kwargs)

    PIPELINE.dit.forward = counting
    try:
        made = PIPELINE("organ", seconds=0.1, seed=0, sampler=sampler, steps=3)
    finally:
        del PIPELINE.dit.forward
    assert made.model_calls == count == calls


def test_the_checkpoints_own_settings_are_the_default():
    own = PIPELINE("organ", seconds=0.1, seed=0)
    assert torch.equal(own.waveform, PIPELINE("organ", seconds=0.1, seed=0, steps=3, guidance=2.0).waveform)
    others = [{"steps": 4}, {"guidance": 3.0}, {"sampler": "ddim"}, {"tags": {"mode": "minor"}}]
    for other in (*others, {"rho": 100.0}, {"schedule": None}):
        assert not torch.equal(own.waveform, PIPELINE("organ", seconds=0.1, seed=0, **other).waveform), other


def blocks_run(pipeline, **changes):
    """How many blocks a generation runs, in all."""
    ran = []
    hooks = [block.mlp.register_forward_pre_hook(lambda *_: ran.append(1)) for block in pipeline.dit.blocks]
    pipeline("organ", **({"seconds": 0.1, "seed": 0} | changes))
    for hook in hooks:
        hook.remove()
    return len(ran)


def test_every_block_or_those_of_another_schedule():
    student = small_pipeline(sampler="pingpong", steps=4, guidance=1.0)  # 80, 17.5, 2.5, 0.2
    assert blocks_run(student) == blocks_run(student, schedule=student.config.schedule) == 3 + 5 + 5 + 6
    assert blocks_run(student, schedule=None) == 4 * 6
    assert blocks_run(student, schedule=LayerSchedule(6, (), (2,))) == 4 * 2
    full = student("organ", seconds=0.1, seed=0, schedule=None).waveform
    assert torch.equal(full, student("organ", seconds=0.1, seed=0, schedule=LayerSchedule.full(6)).waveform)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_student_is_rescheduled(steps):
    student = small_pipeline(sampler="pingpong", steps=4, guidance=1.0)
    for rho in (7.0, 1000.0):
        plan = student.plan(0.1, steps=steps, rho=rho)
        assert plan.sampling.sigmas == karras_sigmas(steps, rho=rho, spacing="interval")
        made = student("organ", seconds=0.1, seed=0, steps=steps, rho=rho)
        assert made.model_calls == steps and made.waveform.isfinite().all()


def test_guidance_on_top_of_a_teachers_is_said_once(recwarn):
    make = {"prompt": "organ", "seconds": 0.1, "seed": 0, "steps": 1}
    student = small_pipeline(sampler="pingpong", guidance=1.0, guidance_baked=2.5)
    student(**make)
    student(**make, guidance=1.0)
    assert not recwarn
    with pytest.warns(UserWarning, match=r"teacher guided with 2\.5.*guidance=3 runs classifier-free"):
        student(**make, guidance=3.0)
    told = small_config(takes_guidance=True)
    for other in (student, small_pipeline(), small_pipeline(dit=told, guidance_baked=2.5)):
        other(**make, guidance=3.0)
    assert not recwarn


def test_a_student_that_takes_the_scale_is_called_once():
    told = small_pipeline(sampler="pingpong", dit=small_config(takes_guidance=True))
    assert blocks_run(told, guidance=3.0, schedule=None, steps=2) == 2 * 6
    two, three = (told("organ", seconds=0.1, seed=0, guidance=scale).waveform for scale in (2.0, 3.0))
    assert not torch.equal(two, three) and torch.equal(two, told("organ", seconds=0.1, seed=0).waveform)


def test_a_consistency_trajectory_model_plays_with_any_sampler_that_jumps():
    config = small_config(takes_sigma_to=True)
    sampling = Sampling("ctm", 3, spacing="interval", gamma=1.0)
    pipeline = small_pipeline(dit=config, parameterization="ctm", sampling=sampling)
    jumping, pingpong = (pipeline("organ", seconds=0.1, seed=0, sampler=name).waveform for name in ("ctm", "pingpong"))
    assert torch.equal(jumping, pingpong)  # gamma = 1 jumps to the clean latents each time


@pytest.mark.parametrize("sampler", ["heun", "pingpong"])
def test_a_seed_gives_the_same_alone_and_in_a_batch(sampler):
    make = {"seconds": 0.1, "sampler": sampler, "stereo": True}
    batch = PIPELINE(["slow organ", "harp"], seed=5, num_samples=3, **make)
    assert batch.seeds == (5, 6, 7, 8, 9, 10) and batch.waveform.shape == (6, 2, 800)
    for index, prompt in ((0, "slow organ"), (2, "slow organ"), (4, "harp")):
        alone = PIPELINE(prompt, seed=batch.seeds[index], **make)
        assert torch.equal(alone.waveform[0], batch.waveform[index])
    assert torch.equal(batch.waveform, PIPELINE(["slow organ", "harp"], seed=5, num_samples=3, **make).waveform)
    chosen = PIPELINE("harp", seed=[9, 5], num_samples=2, **make)
    assert torch.equal(chosen.waveform[0], batch.waveform[4])


def test_different_seeds_are_different_and_one_is_drawn():
    made = PIPELINE("organ", seconds=0.1, num_samples=2)
    assert not torch.allclose(made.waveform[0], made.waveform[1])
    again = PIPELINE("organ", seconds=0.1, num_samples=2, seed=made.seeds[0])
    assert torch.equal(again.waveform, made.waveform)
    assert PIPELINE("organ", seconds=0.1).seeds != made.seeds[:1]


def test_an_empty_prompt_is_no_text():
    nothing = PIPELINE("", seconds=0.1, seed=0)
    assert torch.equal(nothing.waveform, PIPELINE("  ", seconds=0.1, seed=0).waveform)
    unguided = PIPELINE("", seconds=0.1, seed=0, guidance=1.0)  # both halves of a guided call are the same
    same(nothing.waveform, unguided.waveform)
    assert not torch.allclose(nothing.waveform, PIPELINE("organ", seconds=0.1, seed=0).waveform, atol=1e-3)


def test_the_stereo_module_keeps_the_mono():
    mono = PIPELINE("organ", seconds=0.2, seed=0).waveform
    stereo = PIPELINE("organ", seconds=0.2, seed=0, stereo=True).waveform
    torch.testing.assert_close(stereo.mean(1, keepdim=True), mono, rtol=0, atol=1e-6 * float(stereo.abs().max()))
    assert not torch.allclose(stereo[:, 0], stereo[:, 1])


def test_tags_for_all_or_for_each():
    make = {"seconds": 0.1, "seed": [3, 3]}
    each = PIPELINE(["", ""], tags=[{"mode": "minor"}, None], **make).waveform
    both = PIPELINE(["", ""], tags={"mode": "minor"}, **make).waveform
    assert torch.equal(both[0], both[1]) and torch.equal(each[0], both[0])
    assert not torch.allclose(each[1], both[1], atol=1e-3)


def test_a_prompt_that_is_too_long_says_so():
    with pytest.warns(UserWarning, match="cut"):
        PIPELINE("a b c d e f g h", seconds=0.1)


def test_timings_are_of_every_stage():
    made = PIPELINE("organ", seconds=0.1, seed=0, timings=True, stereo=True)
    times = made.timings
    assert len(times.steps) == 3 and min(times.prompt, times.prepare, *times.steps, times.decode, times.stereo) > 0
    assert math.isclose(times.total, times.prompt + times.prepare + sum(times.steps) + times.decode + times.stereo)
    assert len(PIPELINE("organ", seconds=0.1, num_samples=2, timings=True).timings.steps) == 6
    plain = PIPELINE("organ", seconds=0.1, seed=0, stereo=True)
    assert plain.timings is None and torch.equal(plain.waveform, made.waveform)


def test_progress_is_quiet_without_a_terminal(capsys):
    PIPELINE("organ", seconds=0.1, seed=0, progress=True)
    assert capsys.readouterr() == ("", "")


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    PIPELINE("organ", seconds=0.1, seed=0, progress=True)
    out, err = capsys.readouterr()
    assert not out and "generating" in err


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seconds": 0}, ValueError, "seconds must be positive"),
        ({"seconds": -1.0}, ValueError, "seconds must be positive"),
        ({"seconds": 1e-6}, ValueError, "at least one sample"),
        ({"seconds": float("nan")}, ValueError, "seconds must be positive"),
        ({"seconds": float("inf")}, ValueError, "seconds must be positive"),
        ({"seconds": 3.01}, ValueError, "seconds must be at most 3"),
        ({"seconds": "3"}, TypeError, "seconds must be a number"),
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1"),
        ({"num_samples": 1.0}, TypeError, "num_samples must be an int"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"sampler": "euler"}, ValueError, "sampler must be one of"),
        ({"guidance": float("inf")}, ValueError, "guidance must be"),
        ({"rho": 0.0}, ValueError, "rho must be from"),
        ({"schedule": LayerSchedule.default(8)}, ValueError, "schedule must be made for the model's 6 blocks"),
        ({"schedule": "full"}, TypeError, "schedule must be a LayerSchedule, None or 'own'"),
        ({"sampler": "ctm"}, ValueError, "sampler 'ctm' is for"),
        ({"seed": 2**63}, ValueError, "seed must be an int in"),
        ({"seed": 2**63 - 1, "num_samples": 2}, ValueError, "for every sample"),
        ({"seed": [1, 2]}, ValueError, "one for each of the 1 samples"),
        ({"seed": 1.5}, ValueError, "seed must be an int"),
        ({"prompt": 3}, TypeError, "prompt must be a string"),
        ({"prompt": []}, ValueError, "at least one string"),
        ({"prompt": ["a", None]}, TypeError, "prompt must be a string"),
        ({"tags": ["mode=minor", "x"]}, ValueError, "tags must be a mapping"),
        ({"tags": {"mood": "sad"}}, ValueError, "no tag field 'mood'"),
        ({"stereo": True}, ValueError, "this checkpoint has none"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said_before_any_work(changes, error, message):
    pipeline = small_pipeline(stereo=False)
    pipeline.dit.forward = pipeline.autoencoder.decode = lambda *_, **__: pytest.fail("it began to work")
    with pytest.raises(error, match=message):
        pipeline(**({"prompt": "organ", "seconds": 0.1} | changes))


def test_without_a_text_encoder_there_is_the_engine():
    silent = PrestoPipeline(PIPELINE.config, PIPELINE.dit, PIPELINE.autoencoder)
    with pytest.raises(ValueError, match="without a text encoder"):
        silent("organ")
    audio = silent.engine(silent.plan(0.1), PIPELINE.conditioner(["organ"]), torch.tensor([3]))
    assert torch.equal(audio[..., :800], PIPELINE("organ", seconds=0.1, seed=3).waveform)


def test_components_that_do_not_fit_each_other():
    other = small_pipeline(tags=False)
    other.stereo.config = type(other.stereo.config)(sample_rate=44100)
    with pytest.raises(ValueError, match="44100 Hz"):
        PrestoPipeline(other.config, other.dit, other.autoencoder, stereo=other.stereo)
    other.conditioner.text_dim = 21
    with pytest.raises(ValueError, match="text_dim 20"):
        PrestoPipeline(other.config, other.dit, other.autoencoder, conditioner=other.conditioner)


@pytest.fixture
def words(monkeypatch):
    """A checkpoint names its text encoder; this one stands where MiniLM would."""
    monkeypatch.setattr("presto_models.text.conditioner.load_text_encoder", lambda *_, **__: WordEncoder())


@pytest.mark.parametrize(("stereo", "tags"), [(True, True), (False, False)])
def test_saved_and_loaded_it_makes_the_same(tmp_path, words, stereo, tags):
    pipeline = small_pipeline(stereo=stereo, tags=tags)
    folder = pipeline.save_pretrained(tmp_path / "small")
    files = {"autoencoder.safetensors", "diffusion.safetensors"} | ({"stereo.safetensors"} if stereo else set())
    assert {path.name for path in folder.iterdir()} == files
    loaded = PrestoPipeline.from_pretrained(folder, device="cpu")
    assert loaded.config == pipeline.config
    make = {"seconds": 0.2, "seed": 4, "stereo": stereo, "tags": {"mode": "minor"} if tags else None}
    assert torch.equal(loaded("organ", **make).waveform, pipeline("organ", **make).waveform)
    half = PrestoPipeline.from_pretrained(str(folder), device="cpu", dtype=torch.bfloat16)
    assert half.dit.proj_in.weight.dtype == torch.bfloat16
    assert half("organ", **make).waveform.isfinite().all()


def test_a_hub_id_is_downloaded(tmp_path, words, monkeypatch):
    folder = PIPELINE.save_pretrained(tmp_path / "small")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: {"someone/small": str(folder)}[name])
    assert PrestoPipeline.from_pretrained("someone/small", device="cpu").config == PIPELINE.config
    with pytest.raises(CheckpointError, match="the hub did not give it"):
        PrestoPipeline.from_pretrained("someone/else")


def test_a_config_is_plain_json():
    written = json.loads(json.dumps(PIPELINE.config.to_dict()))
    assert DiffusionConfig.from_dict(written) == PIPELINE.config
    assert written["latents"] == {"mean": [0.1, 0.2, -0.3, 0.0, 1.0], "std": [1.0, 0.5, 2.0, 1.5, 0.7]}
    least = {name: written[name] for name in ("dit", "latents")}
    config = DiffusionConfig.from_dict(least)
    assert (config.sigma_data, config.text, config.schedule, config.max_seconds) == (0.5, None, None, None)
    assert (config.base, config.guidance_baked, config.parameterization) == (None, None, "edm")


def test_a_students_config_is_plain_json_too():
    sampling = Sampling("ctm", 4, 3.0, spacing="interval", gamma=0.5)
    dit = replace(PIPELINE.config.dit, takes_sigma_to=True)
    config = replace(
        PIPELINE.config, dit=dit, sampling=sampling, base="presto-tiny", guidance_baked=3.0, parameterization="ctm"
    )
    assert DiffusionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": ""}, "base must name a checkpoint"),
        ({"base": 3}, "base must name a checkpoint"),
        ({"guidance_baked": -1.0}, "guidance_baked must be"),
        ({"guidance_baked": math.nan}, "guidance_baked must be"),
        ({"parameterization": "vp"}, "parameterization must be one of edm, cm, ctm"),
        ({"parameterization": "ctm"}, "needs a DiT with takes_sigma_to"),
        ({"sampling": Sampling("ctm")}, "sampler 'ctm' is for"),
        ({"schedule": LayerSchedule.default(8)}, "6 blocks and keep_last 1, got 8 and 1"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(PIPELINE.config, **changes)


def test_checkpoints_that_are_broken(tmp_path, words):
    folder = PIPELINE.save_pretrained(tmp_path / "small")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        PrestoPipeline.from_pretrained("nothing-of-that-name")
    with pytest.raises(FileNotFoundError, match="no diffusion"):
        PrestoPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="device 'cuda:77' cannot be used"):
        PrestoPipeline.from_pretrained(folder, device="cuda:77")

    path = folder / "diffusion.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        PrestoPipeline.from_pretrained(folder)
    path.write_bytes(whole)
    weights, config = load_weights(path, kind="diffusion")
    save_file(load_file(path), path)
    with pytest.raises(CheckpointError, match="not one of presto's"):
        PrestoPipeline.from_pretrained(folder)
    save_weights(path, weights, kind="diffusion", config={**config, "sampling": {"sampler": "euler"}})
    with pytest.raises(CheckpointError, match="sampler must be one of"):
        load_diffusion(path)
    save_weights(path, weights, kind="diffusion", config={"dit": config["dit"]})
    with pytest.raises(CheckpointError, match="must have latents"):
        load_diffusion(path)
    weights.pop("dit.proj_in.bias")
    save_weights(path, weights, kind="diffusion", config=config)
    with pytest.raises(CheckpointError, match=r"missing \['proj_in.bias'\]"):
        load_diffusion(path)


def test_a_random_pipeline_of_a_named_size():
    one, two = (PrestoPipeline.random("tiny", seed=3, text=None, device="cpu") for _ in range(2))
    plan = one.plan(0.02, stereo=True)
    assert plan.sampling.sampler == "pingpong" and plan.sampling.steps == 4 and plan.length == 19
    dit = one.config.dit
    conditioning = Conditioning(torch.ones(1, 4, dit.text_dim), torch.ones(1, dit.pooled_dim), torch.tensor([3]))
    audio = one.engine(plan, conditioning, torch.tensor([0]))
    assert audio.shape == (1, 2, 19 * one.autoencoder.hop) and audio.isfinite().all()
    assert torch.equal(audio, two.engine(plan, conditioning, torch.tensor([0])))
