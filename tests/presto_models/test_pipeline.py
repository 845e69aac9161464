"""Prompt to waveform: lengths, seeds, batches, files, and what is refused."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_pipeline import WordEncoder, same, small_pipeline

from presto_models import Conditioning
from presto_models.checkpoint import CheckpointError, load_weights, save_weights
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
    for other in ({"steps": 4}, {"guidance": 3.0}, {"sampler": "ddim"}, {"tags": {"mode": "minor"}}):
        assert not torch.equal(own.waveform, PIPELINE("organ", seconds=0.1, seed=0, **other).waveform), other


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
