"""Consistency models and consistency trajectory models, of a tiny teacher."""

import json
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import consistency_run
import pytest
import torch
from consistency_run import KINDS, make_task, run

from presto_models.checkpoint import load_weights
from presto_models.diffusion import classifier_free, ctm_jump, karras_sigmas, sample_heun
from presto_models.diffusion_config import load_diffusion
from presto_models.distill.ode import guided, heun_step
from presto_models.distill.trajectory import TrajectoryConfig, balance
from presto_models.training.config import PRESETS, build, read
from presto_models.training.task import DivergedError

pytest.importorskip("lightning")


@pytest.fixture(scope="module")
def make(teacher_folder, latents_folder):
    """make("cm", levels=8, ...): a task."""
    return partial(make_task, teacher=teacher_folder, data=latents_folder)


@pytest.fixture(scope="module")
def cm(make):
    return make("cm")


@pytest.fixture(scope="module")
def ctm(make):
    return make("ctm", solver_steps=3)


def state(folder, step):
    return load_weights(Path(folder) / f"state-{step:08d}.safetensors", kind="training-state")[0]


# The teacher's solver


def gaussian_denoiser(x, sigma):
    """The exact denoiser of N(0, 0.5^2) data."""
    return x * 0.25 / (0.25 + sigma[:, None, None] ** 2)


def test_a_solver_step_is_heuns():
    """Against Heun written out in numbers, in float64; Euler to 0; nothing where both levels are one, 0 too."""
    x = torch.randn(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([80.0, 1.3, 0.002, 0.0], dtype=torch.float64)
    after = torch.tensor([60.0, 1.3, 0.0, 0.0], dtype=torch.float64)
    y = heun_step(gaussian_denoiser, x, sigma, after, lowest=0.002)
    d1 = (x[0] - x[0] * 0.25 / (0.25 + 6400)) / 80
    ahead = x[0] - 20 * d1
    d2 = (ahead - ahead * 0.25 / (0.25 + 3600)) / 60
    torch.testing.assert_close(y[0], x[0] - 20 * (d1 + d2) / 2, rtol=1e-14, atol=0)
    assert torch.equal(y[1], x[1]) and torch.equal(y[3], x[3])
    torch.testing.assert_close(y[2], gaussian_denoiser(x, sigma)[2], rtol=1e-12, atol=0)


def test_solver_steps_are_the_samplers(cm):
    """A walk of steps of per-sample levels and scales is `sample_heun` of each sample by itself."""
    table = karras_sigmas(5)
    noise = 80 * torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(1))
    conditioning = cm.condition(cm.batch(0, 0, 1))[:2]
    x, scale = noise, torch.tensor([3.0, 1.5])
    with torch.no_grad():
        denoise = guided(cm.real, conditioning, scale)
        for level, following in pairwise(table):
            x = heun_step(denoise, x, torch.full((2,), level), torch.full((2,), following), lowest=0.002)
        for i in range(2):
            text = conditioning[i : i + 1].with_null()
            alone = classifier_free(lambda y, sigma, text=text: cm.real(y, sigma, text), float(scale[i]))
            torch.testing.assert_close(x[i : i + 1], sample_heun(alone, noise[i : i + 1], table), rtol=1e-3, atol=1e-3)


# What is drawn


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_functions_of_the_step(make, kind):
    task = make(kind, guidance=[1.0, 5.0])
    for step in range(4):
        whole, halves = task.batch(step, 0, 1), [task.batch(step, part, 2) for part in (0, 1)]
        for name in ("clean", "seeds", "path", "guidance"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))
        for name, sigma in whole.sigmas.items():
            assert torch.equal(sigma, torch.cat([half.sigmas[name] for half in halves]))
    scales = torch.cat([task.batch(step, 0, 1).guidance for step in range(40)])
    assert 1.0 <= scales.min() < 1.3 and 4.7 < scales.max() <= 5.0


def test_levels_of_a_consistency_model(cm):
    """Every pair of neighbours of the table, down to sigma_min, turns up about as often."""
    table = karras_sigmas(8)[:-1]
    paths = torch.cat([cm.batch(step, 0, 1).path for step in range(120)])
    index = [table.index(pytest.approx(float(t), rel=1e-6)) for t in paths[:, 0]]
    assert all(float(u) == pytest.approx(table[i + 1], rel=1e-6) for i, u in zip(index, paths[:, 1], strict=True))
    counts = torch.tensor(index).bincount(minlength=7)
    assert len(counts) == 7 and counts.min() > 0.6 * counts.max()


def test_levels_of_a_trajectory(ctm):
    """t > u >= s >= 0, walks of one to three steps, the last of which may be to 0; a quarter and more end there."""
    batches = [ctm.batch(step, 0, 1) for step in range(120)]
    path = torch.cat([batch.path for batch in batches])
    t, u, s = (torch.cat([batch.sigmas[name] for batch in batches]) for name in "tus")
    assert bool((path[:, :-1] >= path[:, 1:]).all()) and torch.equal(path[:, 0], t) and torch.equal(path[:, -1], u)
    assert bool((t > u).all()) and bool((u >= s).all()) and float(s.min()) == 0 == float(u.min())
    assert {int(n) for n in (path.diff(dim=1) != 0).sum(1)} == {1, 2, 3}
    assert 0.25 < (s == 0).float().mean() < 0.7
    assert bool((s == u).any()) and bool(((s < u) & (s > 0)).any())


# Losses


def test_the_boundary(cm):
    """At sigma_min the student is the identity, exactly, whatever its weights; the teacher is not."""
    x = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    conditioning, level = cm.condition(cm.batch(0, 0, 1))[:2], torch.full((2,), 0.002)
    with torch.no_grad():
        assert torch.equal(cm.student(x, level, conditioning), x)
        assert not torch.equal(cm.real(x, level, conditioning), x)
        assert not torch.equal(cm.student(x, 2 * level, conditioning), x)


def test_jumps_of_many_levels_at_once():
    """As with numbers; to 0 it is g, to where it stands x itself, at 0 too: exactly."""
    x = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    g = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1))
    t, s = torch.tensor([80.0, 3.0, 0.7, 0.0]), torch.tensor([2.5, 0.0, 0.7, 0.0])
    jump = ctm_jump(lambda *_: g, x, t, s)
    torch.testing.assert_close(jump[0], ctm_jump(lambda *_: g[0], x[0], 80.0, 2.5))
    assert torch.equal(jump[1], g[1]) and torch.equal(jump[2:], x[2:])


def test_a_student_starts_as_its_teacher(ctm, make):
    """Whatever it is told beside the noise level."""
    told = make("ctm", guidance=[1.0, 4.0])
    x = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    conditioning, sigma = ctm.condition(ctm.batch(0, 0, 1))[:2], torch.tensor([5.0, 0.1])
    expected = ctm.real(x, sigma, conditioning)
    assert torch.equal(ctm.student(x, sigma, conditioning, sigma_to=sigma / 3), expected)
    assert torch.equal(told.student(x, sigma, conditioning, sigma_to=sigma / 3, guidance=sigma), expected)


@pytest.mark.parametrize("kind", ["l2", "huber"])
def test_the_loss_of_a_consistency_model(make, kind):
    """Against its formula, its gradient too: nothing flows through the target, which would be another gradient."""
    task = make("cm", distance=kind, huber=0.03)
    with torch.no_grad():  # a target that differs from the student
        for weight in task.loss_module.target.buffers():
            weight.mul_(1.05)
    task.follow(0)
    batch = task.batch(0, 0, 1)
    conditioning = task.condition(batch)
    weights = [w for w in task.student.parameters() if w.requires_grad]

    def gradients(detached):
        """By hand, with the target's weights a copy of its own and not shared with anything."""
        x_t = batch.noised(batch.clean, batch.path[:, 0], 0)
        x_u = heun_step(guided(task.real, conditioning, batch.guidance), x_t, *batch.path.T, lowest=0.002).detach()
        if detached:
            target = task.loss_module.target.edm(x_u, batch.path[:, 1], conditioning).detach()
        else:
            target = task.student(x_u, batch.path[:, 1], conditioning)
        squares = (task.student(x_t, batch.path[:, 0], conditioning) - target).square().mean((1, 2))
        loss = (squares if kind == "l2" else (squares + 0.03**2).sqrt() - 0.03).mean()
        return loss, torch.autograd.grad(loss, weights, allow_unused=True)

    loss, _ = task.loss(task.players[0], task.loss_module, batch, 0)
    found = torch.autograd.grad(loss, weights)
    expected, wanted = gradients(detached=True)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    _, through = gradients(detached=False)
    assert not all(torch.allclose(one, other, rtol=0.1) for one, other in zip(found, through, strict=True))
    assert not any(weight.requires_grad for weight in task.loss_module.target.buffers())


def test_the_loss_of_a_trajectory(ctm):
    """Against its formula, sample by sample, with host numbers."""
    batch = ctm.batch(3, 0, 1)
    ctm.follow(0)
    with torch.no_grad():
        losses = ctm.losses(ctm.loss_module, batch)
        conditioning = ctm.condition(batch)
        x_t, x_u = ctm.walked(batch, conditioning)
        noisy = batch.noised(batch.clean, batch.sigmas["denoising"], 1)
        for i in range(len(batch.names)):
            text, (t, u, s, sigma) = conditioning[i : i + 1], (float(batch.sigmas[n][i]) for n in [*"tus", "denoising"])

            def jump(edm, x, sigma, to, text=text):
                return (
                    x if sigma == to else ctm_jump(lambda x, sigma, to: edm(x, sigma, text, sigma_to=to), x, sigma, to)
                )

            target = ctm.loss_module.target.edm
            one, other = jump(ctm.student, x_t[i : i + 1], t, s), jump(target, x_u[i : i + 1], u, s)
            one, other = jump(target, one, s, 0.0), jump(target, other, s, 0.0)
            assert float(losses["trajectory"][i]) == pytest.approx(float((one - other).square().mean()), rel=1e-3)
            clean = ctm.student(noisy[i : i + 1], sigma, text, sigma_to=sigma)
            weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
            denoising = weight * (clean - batch.clean[i]).square().mean()
            assert float(losses["denoising"][i]) == pytest.approx(float(denoising), rel=1e-3)


def test_denoising_is_balanced(make):
    """Weighted, its gradient in the last layer is as long as the trajectory's; held at the bound; or not weighted."""
    task = make("ctm")
    batch, last = task.batch(1, 0, 1), task.student.dit.proj_out.weight
    losses = task.losses(task.loss_module, batch)
    pair = losses["trajectory"].mean(), losses["denoising"].mean()
    ratio = balance(*pair, last, 1e9)
    lengths = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in pair]
    assert float(ratio * lengths[1]) == pytest.approx(float(lengths[0]), rel=1e-5)
    assert float(balance(*pair, last, 1e-9)) == pytest.approx(1e-9)
    for changes in ({"balanced": False, "denoising": 0.3}, {"denoising": 0.0}):
        other = make("ctm", **changes)
        loss, parts = other.loss(other.players[0], other.loss_module, batch, 0)
        weight = changes["denoising"]
        expected = pair[0] + weight * pair[1] if weight else pair[0]
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        assert ("denoising" in parts) == (weight > 0)


@pytest.mark.parametrize("compared", ["clean", "jump"])
def test_the_gradient_reaches_the_student_through_the_target(make, compared):
    task = make("ctm", compared=compared)
    loss, _ = task.loss(task.players[0], task.loss_module, task.batch(0, 0, 1), 0)
    loss.backward()
    assert all(weight.grad is not None for weight in task.student.parameters() if weight.requires_grad)
    assert all(weight.grad is None for weight in task.loss_module.target.buffers())


# The target


def test_the_target_follows_once_a_step(make):
    """t + (1 - 0.95) (w - t), by name, of unlike weights; micro-batches of one step move it once."""
    task = make("cm", target_decay=0.95)
    player, module = task.players[0], task.loss_module
    assert not list(module.target.parameters()) and {name for name, _ in module.named_buffers()}
    with torch.no_grad():
        for weight in task.student.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    before = {name: weight.clone() for name, weight in module.target.edm.named_buffers()}
    for step, micro in ((0, 0), (0, 1)):
        task.loss(player, module, task.batch(step, micro, 2), step)
    after = dict(module.target.edm.named_buffers())
    assert set(before) == {name for name, _ in task.student.named_parameters()}
    for name, weight in task.student.named_parameters():
        torch.testing.assert_close(after[name], before[name] + 0.05 * (weight - before[name]), rtol=1e-5, atol=1e-6)
    task.loss(player, module, task.batch(1, 0, 1), 1)
    assert not torch.equal(after["dit.proj_in.weight"], before["dit.proj_in.weight"])


# Runs


@pytest.mark.parametrize(("kind", "accumulate"), [("cm", 1), ("ctm", 2)])
def test_a_resumed_run_is_the_one_that_was_not_stopped(make, tmp_path, kind, accumulate):
    """To the bit, the target with it."""
    changes = {"train": {"accumulate": accumulate}, "crops": [{"latents": 16, "batch": 4}]}
    run(make(kind, **changes), tmp_path / "straight", kind)
    run(make(kind, **changes), tmp_path / "stopped", kind, steps=2)
    torch.manual_seed(7)  # global randomness is none of a run's
    run(make(kind, **changes), tmp_path / "stopped", kind, resume=True)
    one, other = state(tmp_path / "straight", 4), state(tmp_path / "stopped", 4)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    name = "student.model.{}.dit.proj_out.weight"
    assert not torch.equal(one[name.format("target.edm")], one[name.format("student")])


@pytest.mark.parametrize("kind", KINDS)
def test_training_brings_neighbours_together(make, tmp_path, kind):
    """Within forty steps the loss on held-out crops is well below the untrained student's."""
    task = make(kind, target_decay=0.5, train={"steps": 40, "learning_rate": 3e-3, "ema_decay": 0.5})
    name = {"cm": "consistency", "ctm": "trajectory"}[kind]

    def held_out():
        with torch.no_grad():
            return float(task.losses(task.loss_module, task.held_out(list(range(5))))[name].mean())

    before = held_out()
    run(task, tmp_path / "run", kind)
    assert held_out() < 0.7 * before


@pytest.mark.parametrize(("kind", "guidance"), [("cm", [3.0, 3.0]), ("ctm", [1.0, 4.0])])
def test_a_run_exports_what_others_load(make, tmp_path, kind, guidance):
    """Validation is written down, and the checkpoint read back makes what the task makes."""
    changes = {"guidance": guidance, "train": {"steps": 2, "validate_every": 2, "ema_decay": 0.0}}
    task = make(kind, **changes)
    run(task, tmp_path / "run", kind)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["validation/latent_distance"] > 0
    config, dit, conditioner = load_diffusion(tmp_path / "run" / "diffusion.safetensors")
    told = guidance[0] != guidance[1]
    assert (config.parameterization, config.sampling.steps) == (kind, 4)
    assert config.guidance_baked == (None if told else 3.0) and dit.config.takes_guidance == told
    assert config.sampling.guidance == (3.0 if told else 1.0) and conditioner is not None
    assert config.denoiser(dit).boundary_sigma == (0.002 if kind == "cm" else 0.0)
    made = task.generate(task.music.prompts[:2], 16, [1, 2])
    task.student = config.denoiser(dit)
    torch.testing.assert_close(task.generate(task.music.prompts[:2], 16, [1, 2]), made, rtol=0.1, atol=0.1)


def test_validation_does_not_depend_on_the_processes(ctm):
    with torch.no_grad():
        whole = ctm.validate(0, 1)
        halves = [ctm.validate(rank, 2) for rank in (0, 1)]
    assert set(whole) == {"trajectory", "denoising", "latent_distance"}
    for name, (total, count) in whole.items():
        found = [sum(float(half[name][i]) for half in halves) for i in (0, 1)]
        assert found[0] / found[1] == pytest.approx(float(total / count), rel=1e-3)


@pytest.mark.slow
def test_two_processes_are_one(teacher_folder, latents_folder, make, tmp_path):
    """Under torchrun with DDP: weights, targets, averages and moments of one process, within float error."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, consistency_run.__file__, *map(str, (teacher_folder, latents_folder, tmp_path / "two"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in KINDS:
        run(make(kind), tmp_path / kind, kind)
        one, two = state(tmp_path / kind, 4), state(tmp_path / "two" / kind, 4)
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-5, msg=f"{kind}: {name}")


# What goes wrong


def test_a_lost_run_says_what_to_try(cm):
    cm.watch(5, {"loss": 0.1, "amplitude": 0.8})
    for amplitude, what in ((0.01, "collapsed"), (30.0, "blown up")):
        with pytest.raises(DivergedError, match=rf"step 5.*{what}.*learning_rate"):
            cm.watch(5, {"loss": 0.1, "amplitude": amplitude})


def test_fsdp_is_refused(cm):
    with pytest.raises(ValueError, match=r"fsdp2.*ddp"):
        cm.shard(cm.loss_module, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": 1}, "levels must be at least 2"),
        ({"guidance": (4.0, 2.0)}, "guidance must be a range"),
        ({"guidance": (-1.0, 2.0)}, "guidance must be a range"),
        ({"target_decay": 1.0}, "target_decay must be in"),
        ({"distance": "lpips"}, "distance must be l2 or huber"),
        ({"huber": 0.0}, "huber must be positive"),
        ({"solver_steps": 0}, "solver_steps must be from 1"),
        ({"solver_steps": 40}, "solver_steps must be from 1 to below levels = 40"),
        ({"compared": "there"}, "compared must be clean or jump"),
        ({"to_clean": 1.5}, "to_clean must be from 0 to 1"),
        ({"denoising": -1.0}, "denoising must be at least 0"),
        ({"largest_balance": 0.0}, "largest_balance must be positive"),
    ],
)
def test_bad_configs_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryConfig(**changes)


def test_bad_tasks_are_named(make, tmp_path):
    with pytest.raises(ValueError, match=r"crops\[1\]\.batch must be a multiple of strata = 4, got 2"):
        make("cm", strata=4)
    run(make("cm", train={"steps": 1}), tmp_path / "student", "cm")
    with pytest.raises(ValueError, match="is a distilled student itself"):
        make("ctm", teacher=tmp_path / "student")


@pytest.mark.parametrize("kind", KINDS)
def test_presets_are_whole(kind):
    config = build(KINDS[kind][0], read("presto-tiny", kind))
    assert len({crop.latents * crop.batch for crop in config.crops}) == 1
    assert all(crop.batch % config.strata == 0 for crop in config.crops)
    assert (PRESETS / f"{kind}-presto-tiny.toml").is_file()
