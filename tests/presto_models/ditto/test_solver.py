"""An optimisation from the request to the music."""

import pytest
import torch
from small_controls import Level, Near
from small_walks import MAKE, SAMPLERS, options, pipeline

from presto_models.ditto import DittoOptions, optimize
from presto_models.ditto.search import load_noise
from presto_models.ditto.setup import Setup


def made_from(sampler, noise, steps=3, **changes):
    """What the walk makes of a noise."""
    setup = Setup.of(
        pipeline(sampler), Near(), options=options(sampler=sampler, sampling_steps=steps), **MAKE, **changes
    )
    with torch.no_grad():
        return setup.walk(setup.far)(noise)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_it_lowers_the_error_through_any_sampler_and_is_the_same_again(sampler):
    make = {"options": options(6, sampler=sampler, learning_rate=0.1), **MAKE}
    first = optimize(pipeline(sampler), Near(to=0.2), **make)
    outcome = first.outcomes["latents"]
    assert outcome.history.shape == (6, 1) and first.steps == 6
    assert float(outcome.history[-1]) < 0.99 * float(outcome.history[0])  # new noise drowns much of it in ping-pong
    torch.testing.assert_close(outcome.error, outcome.history.amin(0))
    torch.testing.assert_close(outcome.before, outcome.history[0])
    assert torch.equal(first.x, made_from(sampler, first.noise))
    with torch.no_grad():
        assert torch.equal(first.waveform, pipeline(sampler).engine.decode(first.x)[..., :800])
    assert first.model_calls == {"heun": 5, "dpmpp_2s": 5}.get(sampler, 3)
    assert first.seconds > 0 and first.seconds_per_step > 0 and not outcome.drift.any()
    again = optimize(pipeline(sampler), Near(to=0.2), **make)
    assert torch.equal(first.noise, again.noise) and torch.equal(first.waveform, again.waveform)


def test_without_checkpoints_it_is_the_same():
    kept, plain = (
        optimize(pipeline(), Near(), options=options(sampler="heun", checkpointed=checkpointed), **MAKE)
        for checkpointed in (True, False)
    )
    torch.testing.assert_close(kept.noise, plain.noise, rtol=0, atol=1e-4)


def test_several_controls_weigh_what_they_are_given():
    lean = {}
    for name, weights in {"latents": (1.0, 1e-6), "loudness": (1e-6, 1.0)}.items():
        controls = [Near(to=2.0, weight=weights[0]), Level(db=0.0, weight=weights[1])]
        made = optimize(pipeline(), controls, options=options(6, sampler="ddim", learning_rate=0.1), **MAKE)
        assert list(made.outcomes) == ["latents", "loudness"]
        lean[name] = {key: float(o.history[-1] / o.history[0]) for key, o in made.outcomes.items()}
        errors = torch.stack([outcome.error for outcome in made.outcomes.values()])
        torch.testing.assert_close(made.total, errors.mean(0))
    assert lean["latents"]["latents"] < lean["loudness"]["latents"]
    assert lean["loudness"]["loudness"] < lean["latents"]["loudness"]


def test_it_ends_where_every_sample_is_good_enough():
    make = {"num_samples": 2, **MAKE, "seed": [9, 10]}
    free = optimize(pipeline(), Near(to=0.2), options=options(6, sampler="ddim"), **make)
    history = free.outcomes["latents"].history
    threshold = float(history[3].max())
    made = optimize(pipeline(), Near(to=0.2, threshold=threshold), options=options(6, sampler="ddim"), **make)
    first = [int((history[:, i] <= threshold).int().argmax()) for i in range(2)]
    assert made.steps_to_threshold == tuple(first) and made.steps == max(first) + 1 < 6
    assert bool((made.outcomes["latents"].error <= threshold * 1.001).all())
    assert free.steps_to_threshold == (None, None)


def test_no_step_at_all_measures_the_music_as_it_is():
    made = optimize(pipeline(), Near(), options=options(0, sampler="heun"), **MAKE)
    assert made.steps == 0 and made.seconds_per_step is None and made.steps_to_threshold == (None,)
    assert torch.equal(made.outcomes["latents"].error, made.outcomes["latents"].before)
    assert torch.equal(made.waveform, pipeline()(MAKE["prompt"], seconds=0.1, seed=3, steps=3).waveform)


def test_a_callback_is_told_of_each_step_and_may_end_the_search():
    told = []

    def callback(report):
        told.append(report)
        return report.step == 2

    made = optimize(pipeline(), [Near(), Level()], options=options(5), callback=callback, num_samples=2, **MAKE)
    assert made.steps == 2 and [(report.step, report.steps) for report in told] == [(1, 5), (2, 5)]
    for name, outcome in made.outcomes.items():
        assert told[1].errors[name] == outcome.history[1].tolist()


def killed_at(step):
    def callback(report):
        if report.step == step:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize("sampler", ["ddim", "pingpong"])
def test_a_search_that_was_killed_is_gone_on_with_to_the_last_bit(tmp_path, monkeypatch, sampler):
    make = {"options": options(6, sampler=sampler), "num_samples": 2, **MAKE}
    controls = [Near(), Level(weight=0.01, threshold=-1.0)]
    whole = optimize(pipeline(sampler), controls, **make)
    ticks = iter(range(0, 10**6, 10))
    monkeypatch.setattr("presto_models.ditto.solver.time.monotonic", lambda: next(ticks))  # it is saved at each step
    path = tmp_path / "noise.safetensors"
    with pytest.raises(KeyboardInterrupt):
        optimize(pipeline(sampler), controls, save=path, callback=killed_at(4), **make)
    told = []
    rest = optimize(pipeline(sampler), controls, save=path, resume=True, callback=told.append, **make)
    assert [report.step for report in told] == [4, 5, 6]  # the fourth was not saved when it was killed
    assert torch.equal(rest.noise, whole.noise) and torch.equal(rest.waveform, whole.waveform)
    for name, outcome in whole.outcomes.items():
        assert torch.equal(rest.outcomes[name].history, outcome.history)
    assert torch.equal(load_noise(path), rest.noise)
    done = optimize(pipeline(sampler), controls, save=path, resume=True, callback=killed_at(1), **make)
    assert torch.equal(done.noise, whole.noise)  # nothing is left to do
    more = make | {"options": options(8, sampler=sampler)}
    assert optimize(pipeline(sampler), controls, save=path, resume=True, **more).steps == 8


def test_resuming_where_all_is_good_enough_does_nothing(tmp_path):
    make = {"options": options(5, sampler="ddim"), "save": tmp_path / "noise.safetensors", **MAKE}
    first = optimize(pipeline(), Near(threshold=1e9), **make)
    again = optimize(pipeline(), Near(threshold=1e9), resume=True, callback=killed_at(1), **make)
    assert first.steps == again.steps == 1 and torch.equal(first.noise, again.noise)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "quick organ"}, "prompts"),
        ({"seed": 4}, "seeds"),
        ({"seconds": 0.096}, "samples"),
        ({"tags": {"mode": "minor"}}, "text"),
        ({"controls": Near(to=0.3)}, "controls"),
        ({"controls": Near(weight=2.0)}, "controls"),
        ({"options": options(sampler="heun")}, "sampler"),
        ({"options": options(sampler="ddim", learning_rate=0.1)}, "learning_rate"),
    ],
    ids=str,
)
def test_another_optimisation_is_not_gone_on_with(tmp_path_factory, changes, message):
    path = tmp_path_factory.getbasetemp() / "one.safetensors"
    make = {"controls": Near(), "options": options(2, sampler="ddim"), **MAKE}
    if not path.exists():
        optimize(pipeline(), save=path, **make)
    with pytest.raises(ValueError, match=f"is of another optimisation: .*{message}"):
        optimize(pipeline(), save=path, resume=True, **(make | changes))


def test_another_models_search_is_not_gone_on_with(tmp_path):
    path = tmp_path / "noise.safetensors"
    make = {"controls": Near(), "options": options(1, sampler="ddim"), **MAKE}
    optimize(pipeline(), save=path, **make)
    optimize(pipeline("dpmpp_2s"), save=path, resume=True, **make)  # its twin
    with pytest.raises(ValueError, match=r"another optimisation: .*model"):
        optimize(pipeline("ctm"), save=path, resume=True, **make)


def test_it_begins_where_it_is_told_to(tmp_path):
    make = {"options": options(2, sampler="ddim"), **MAKE}
    path = tmp_path / "noise.safetensors"
    first = optimize(pipeline(), Near(), save=path, **make)
    for start in (first, first.noise, path, str(path)):
        went_on = optimize(pipeline(), Near(), start=start, **make)
        torch.testing.assert_close(went_on.outcomes["latents"].history[0], first.outcomes["latents"].error)
        # What it is compared with is still the seed's own music.
        assert torch.equal(went_on.outcomes["latents"].before, first.outcomes["latents"].before)
    with pytest.raises(ValueError, match=r"start must be noise \(1, 13, 5\).*got \(1, 12, 5\)"):
        optimize(pipeline(), Near(), start=first.noise[:, 1:], **make)
    with pytest.raises(TypeError, match="start must be noise, an earlier result or a file of one, got int"):
        optimize(pipeline(), Near(), start=3, **make)
    with pytest.raises(FileNotFoundError):
        optimize(pipeline(), Near(), start=tmp_path / "none", **make)
    with pytest.raises(ValueError, match="resume=True goes on from the file save="):
        optimize(pipeline(), Near(), resume=True, **make)


@pytest.mark.parametrize("beside", [[], [Level()]], ids=["alone", "beside another"])
def test_errors_that_are_no_numbers_end_it_and_the_file_stays_good(tmp_path, beside):
    path = tmp_path / "noise.safetensors"
    controls = [Near(spoiled_after=2), *beside]
    with pytest.raises(ArithmeticError, match=r"error of latents was NaN .* before step 3; .* is in .*noise"):
        optimize(pipeline(), controls, options=options(6, sampler="ddim"), save=path, **MAKE)
    kept = load_noise(path)
    two = optimize(pipeline(), [Near(), *beside], options=options(2, sampler="ddim"), **MAKE)
    assert torch.equal(kept, two.noise)
    with pytest.raises(ArithmeticError, match=r"before step 1; try dtype fp32$"):
        optimize(pipeline(), Near(spoiled_after=0), options=options(6), **MAKE)


def test_through_a_surrogate_the_drift_is_what_lies_between_the_two_walks():
    make = {"options": options(4, sampler="ddim", sampling_steps=4, surrogate_steps=1, learning_rate=0.1), **MAKE}
    made = optimize(pipeline("pingpong"), Near(to=0.2), **make)
    outcome = made.outcomes["latents"]
    assert made.model_calls == 1
    near, far = (made_from("pingpong", made.noise) for _ in range(2))
    setup = Setup.of(pipeline("pingpong"), Near(to=0.2), **make)
    with torch.no_grad():
        near, far = (setup.walk(plan)(made.noise) for plan in (setup.near, setup.far))
    assert torch.equal(made.x, far)
    drift = (near.mean(1) - far.mean(1)).abs().mean(1)
    torch.testing.assert_close(outcome.drift, drift)
    assert float(drift) > 0
    # The history is the surrogate's, the error that of the music.
    torch.testing.assert_close(outcome.history.amin(0), (near.mean(1) - 0.2).square().mean(1))
    torch.testing.assert_close(outcome.error, (far.mean(1) - 0.2).square().mean(1))


def test_stereo_is_the_music_widened():
    mono, stereo = (
        optimize(pipeline(), Near(), options=options(1, sampler="ddim"), stereo=wide, **MAKE) for wide in (False, True)
    )
    assert mono.waveform.shape == (1, 1, 800) and stereo.waveform.shape == (1, 2, 800)
    assert torch.equal(mono.noise, stereo.noise)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": 1.5}, TypeError, "steps must be an int, got float"),
        ({"steps": -1}, ValueError, "steps must be at least 0"),
        ({"sampling_steps": 0}, ValueError, "sampling_steps must be at least 1"),
        ({"surrogate_steps": True}, TypeError, "surrogate_steps must be an int, got bool"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be above 0"),
        ({"x_max": float("inf")}, ValueError, "x_max must be above 0 and finite"),
    ],
    ids=str,
)
def test_bad_options(changes, error, message):
    with pytest.raises(error, match=message):
        DittoOptions(**changes)
