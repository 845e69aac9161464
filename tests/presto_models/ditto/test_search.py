"""The state of a search, and one step of it."""

import pytest
import torch
from small_controls import Level, Near
from small_walks import MAKE, options, pipeline

from presto_models.checkpoint import CheckpointError
from presto_models.ditto.search import Search, load_noise
from presto_models.ditto.setup import Setup


def search(controls, *, seeds=(3,), steps=6, learning_rate=0.05, noise=None):
    """A search through DDIM in three steps of as many samples as there are seeds."""
    here = Setup.of(
        pipeline(),
        controls,
        options=options(sampler="ddim"),
        **(MAKE | {"seed": list(seeds), "num_samples": len(seeds)}),
    )
    start = here.noise() if noise is None else noise
    return Search(here.walk(here.near), here.scene, here.bound, start, steps=steps, learning_rate=learning_rate)


def test_a_step_is_adams_down_the_gradient_of_the_weighted_sum():
    controls = [Near(weight=2.0), Level(weight=0.01)]
    mine = search(controls)
    start = mine.noise.detach().clone().requires_grad_()
    errors = mine.errors(mine.walk(start))
    (gradient,) = torch.autograd.grad(2.0 * errors[0].sum() + 0.01 * errors[1].sum(), start)
    mine.step()
    torch.testing.assert_close(mine.history[0], errors.detach())
    assert bool(mine.history[1:].isnan().all()) and int(mine.done) == 1
    # The first step of Adam is as long as the learning rate, whatever the gradient.
    torch.testing.assert_close(mine.noise.detach(), start.detach() - 0.05 * gradient / (gradient.abs() + 1e-8))


def test_the_best_noise_is_where_the_weighted_sum_was_least():
    mine = search([Near(), Level(weight=0.001)], learning_rate=0.5)  # too fast: it goes up as well
    stood = []
    for _ in range(6):
        stood.append(mine.noise.detach().clone())
        mine.step()
    totals = mine.history[:, 0, 0] + 0.001 * mine.history[:, 1, 0]
    best = int(totals.argmin())
    assert torch.equal(mine.best_noise, stood[best]) and float(mine.best) == float(totals[best])
    assert bool((totals.diff() > 0).any())


def test_a_sample_that_is_good_enough_stays_where_it_was_and_the_others_go_on():
    mine, free = search(Near(to=0.2, threshold=0.8), seeds=(9, 10)), search(Near(to=0.2), seeds=(9, 10))
    stood = []
    for _ in range(6):
        stood.append(mine.noise.detach().clone())
        for each in (mine, free):
            each.step()
    assert mine.reached.tolist() == [False, True]
    reached = int((free.history[:, 0, 1] <= 0.8).int().argmax())
    assert 0 < reached < 5
    for noise in (*stood[reached:], mine.noise.detach(), mine.best_noise):
        assert torch.equal(noise[1], stood[reached][1])
    assert float(mine.best[1]) == float(free.history[reached, 0, 1])
    # The other one does as if nothing had happened.
    assert torch.equal(mine.noise.detach()[0], free.noise.detach()[0])
    assert torch.equal(mine.history[:, :, 0], free.history[:, :, 0])


def test_a_batch_is_each_of_its_samples_alone():
    """Within the rounding of a matrix product of another size, which a walk from noise at 80 enlarges."""
    controls = [Near(), Level(weight=0.01)]
    together = search(controls, seeds=(3, 4, 5))
    alone = [search(controls, seeds=(seed,)) for seed in (3, 4, 5)]
    errors, gradient = together.evaluate()
    single = [each.evaluate() for each in alone]
    torch.testing.assert_close(errors, torch.cat([e for e, _ in single], 1), rtol=1e-3, atol=0)
    expected = torch.cat([g for _, g in single])
    assert float((gradient - expected).norm()) < 1e-3 * float(expected.norm())
    for _ in range(3):
        for each in (together, *alone):
            each.step()
    moved = torch.cat([each.noise.detach() for each in alone])
    torch.testing.assert_close(together.noise.detach(), moved, rtol=0, atol=0.1 * 0.05)  # a tenth of a step
    best = torch.cat([each.best for each in alone])
    torch.testing.assert_close(together.best, best, rtol=1e-3, atol=0)


def test_a_sample_without_a_gradient_stays_and_does_not_spoil_the_others():
    noise = torch.randn(2, 13, 5, generator=torch.Generator().manual_seed(0))
    noise[0, 0, 0] = float("nan")
    mine = search(Near(), seeds=(3, 4), noise=noise)
    for _ in range(3):
        mine.step()
    assert torch.equal(mine.noise.detach()[0].nan_to_num(), noise[0].nan_to_num())
    assert bool(mine.noise[1].isfinite().all()) and not torch.equal(mine.noise.detach()[1], noise[1])
    assert float(mine.best[0]) == float("inf") and float(mine.best[1]) < float(mine.history[0, 0, 1])
    (state,) = mine.optimizer.state.values()
    assert bool(state["exp_avg"].isfinite().all() and state["exp_avg_sq"].isfinite().all())


def test_what_was_saved_is_gone_on_with_to_the_last_bit(tmp_path):
    path = tmp_path / "noise.safetensors"
    whole, first, second = (search([Near(), Level(weight=0.01)], steps=6) for _ in range(3))
    for _ in range(6):
        whole.step()
    for _ in range(3):
        first.step()
    first.save(path, {"is": 1})
    second.resume(path, {"is": 1})
    for _ in range(3):
        second.step()
    for name in ("noise", "best_noise", "best", "history", "done", "reached"):
        assert torch.equal(getattr(second, name), getattr(whole, name)), name
    assert [file.name for file in tmp_path.iterdir()] == ["noise.safetensors"]
    first.save(path, {"is": 1})
    assert torch.equal(load_noise(path), first.best_noise)


def test_a_file_of_something_else_is_refused(tmp_path):
    path, mine = tmp_path / "noise.safetensors", search(Near())
    with pytest.raises(FileNotFoundError, match="no ditto at"):
        mine.resume(path, {})
    mine.step()
    mine.save(path, {"rate": 1, "prompts": ["a"]})
    with pytest.raises(ValueError, match=r"another optimisation: prompts \(\['a'\] there, \['b'\] here\); give start="):
        mine.resume(path, {"rate": 1, "prompts": ["b"]})
    with pytest.raises(CheckpointError, match=r"holds noise \(1, 13, 5\), wanted \(2, 13, 5\)"):
        search(Near(), seeds=(3, 4)).resume(path, {"rate": 1, "prompts": ["a"]})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError):
        mine.resume(path, {"rate": 1, "prompts": ["a"]})


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path, mine = tmp_path / "noise.safetensors", search(Near())
    mine.step()
    mine.save(path, {})
    before = path.read_bytes()
    mine.step()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        mine.save(path, {})
    assert path.read_bytes() == before
