"""Outpainting, inpainting, looping and inversion: what they compare, and what they refuse."""

import pytest
import torch
from small_pipeline import small_pipeline

from presto_models.ditto import DittoOptions, Inpaint, Inversion, Loop, Outpaint, Scene, optimize
from presto_models.ditto.control import bind_all

RATE, HOP = 8000, 64
QUICK = DittoOptions(steps=6, learning_rate=0.05, sampling_steps=2)


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


def audio(seconds, seed=0, channels=1):
    return 0.1 * torch.randn(channels, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def scene_of(pipeline, seconds=1.0, batch=2):
    return Scene(pipeline, round(seconds * RATE), batch)


def random_x(scene, seed=1):
    return torch.randn(scene.batch, scene.length, 5, generator=torch.Generator().manual_seed(seed))


def check_error(bound, scene, x, parts):
    """0 for x, 0.25 where half of one is added in its parts, and unchanged by what is elsewhere."""
    assert torch.equal(bound.error(scene.made(x)), torch.zeros(scene.batch))
    inside, outside = torch.zeros_like(x), torch.full_like(x, 3.0)
    for first, last in parts:
        inside[:, first:last], outside[:, first:last] = 0.5, 0.0
    torch.testing.assert_close(bound.error(scene.made(x + inside)), torch.full((scene.batch,), 0.25))
    assert torch.equal(bound.error(scene.made(x + outside)), torch.zeros(scene.batch))
    assert bound.feature(scene.made(x)).shape == (scene.batch, *bound.target.shape)
    mask, values = bound.known()
    apart = (x + inside + outside - values).square().mean(2)
    by_mask = (apart * mask).sum(1) / mask.sum()
    torch.testing.assert_close(by_mask, bound.error(scene.made(x + inside + outside)))
    expected = [(first * HOP / RATE, last * HOP / RATE) for first, last in parts]
    assert [pytest.approx(span) for span in expected] == list(bound.spans)


def test_outpaint_begins_as_the_reference_ends(pipeline):
    scene, reference = scene_of(pipeline), audio(1.23)  # 9840 samples: 153 latents and 48 samples
    (bound,) = bind_all(Outpaint(reference=reference, sample_rate=RATE, overlap=0.3), scene)
    count = 38  # 37.5
    x = random_x(scene)
    x[:, :count] = scene.encode(reference[:, 48:])[-count:]
    check_error(bound, scene, x, [(0, count)])
    assert bound.kind == "latents" and bound.name == "outpaint"


def test_the_grid_is_the_new_musics(pipeline):
    """Music that really goes on, encoded from the overlap's first sample: the same latents but for both cuts."""
    scene, piece = scene_of(pipeline, 2.0), audio(3.0)
    cut = 9000
    bound = Outpaint(reference=piece[:, :cut], sample_rate=RATE, overlap=0.8).bind(scene)
    z = scene.encode(piece[:, cut - 100 * HOP :])
    torch.testing.assert_close(bound.target[40:60], z[40:60], rtol=0, atol=1e-4)
    assert not torch.allclose(bound.target[40:60], z[41:61], rtol=0, atol=1e-1)


@pytest.mark.parametrize(
    ("gap", "overlap", "parts"),
    [
        ((0.4, 0.6), 0.16, [(30, 50), (75, 95)]),
        ((0.405, 0.595), 0.16, [(30, 50), (75, 95)]),  # widened to the latents it touches
        ((0.4, 0.6), None, [(0, 50), (75, 125)]),
        ((0.0, 0.6), 0.16, [(75, 95)]),
        ((0.4, 1.0), 0.16, [(30, 50)]),
    ],
)
def test_inpaint_is_the_reference_beside_the_gap(pipeline, gap, overlap, parts):
    scene, reference = scene_of(pipeline), audio(1.0)
    bound = Inpaint(reference=reference, sample_rate=RATE, gap=gap, overlap=overlap).bind(scene)
    left = scene.encode(reference[:, : 50 * HOP])
    right = scene.encode(reference[:, 75 * HOP :])
    x = random_x(scene)
    for first, last in parts:
        x[:, first:last] = left[first:last] if last <= 50 else right[first - 75 : last - 75]
    check_error(bound, scene, x, parts)
    # What is in the gap is not heard.
    other = reference.clone()
    other[:, 50 * HOP : 75 * HOP] = audio(0.2, seed=7)
    again = Inpaint(reference=other, sample_rate=RATE, gap=gap, overlap=overlap).bind(scene)
    assert torch.equal(again.target, bound.target)


def test_loop_ends_as_the_reference_begins(pipeline):
    scene, reference = scene_of(pipeline, 0.99), audio(0.73)  # 124 latents, the last cut short; 91 and 16 samples
    bound = Loop(reference=reference, sample_rate=RATE, overlap=0.16).bind(scene)
    x = random_x(scene)
    x[:, :20] = scene.encode(reference[:, 16:])[-20:]
    x[:, -20:] = scene.encode(reference)[:20]
    assert scene.length == 124 and bound.spans[1] == (pytest.approx(104 * HOP / RATE), 0.99)
    assert torch.equal(bound.error(scene.made(x)), torch.zeros(2))
    x[:, 20:-20] = 9.0
    assert torch.equal(bound.error(scene.made(x)), torch.zeros(2))
    x[:, -1] += 1.0
    torch.testing.assert_close(bound.error(scene.made(x)), torch.full((2,), 1 / 40))


def test_loop_without_a_reference_compares_the_edges(pipeline):
    scene = scene_of(pipeline)
    bound = Loop(overlap=0.16).bind(scene)
    x = random_x(scene)
    x[:, -20:] = x[:, :20]
    made = scene.made(x)
    assert torch.equal(bound.error(made), torch.zeros(2)) and bound.kind == "edges"
    assert 0.7 < float(bound.figures(made)["edge variation"][0]) < 1.3
    # The trivial solution has no error either, and can be told.
    still = x.clone()
    still[:, :20] = still[:, -20:] = 1.0
    assert torch.equal(bound.error(scene.made(still)), torch.zeros(2))
    assert float(bound.figures(scene.made(still))["edge variation"][0]) == 0
    x[0, -20:] += 2.0
    torch.testing.assert_close(bound.error(scene.made(x)), torch.tensor([4.0, 0.0]))


def test_inversion_is_the_whole_reference(pipeline):
    scene, reference = scene_of(pipeline, 0.5), audio(0.497)
    bound = Inversion(reference=reference, sample_rate=RATE).bind(scene)
    z = scene.encode(reference).expand(2, -1, -1)
    assert torch.equal(bound.error(scene.made(z)), torch.zeros(2)) and bound.figures(scene.made(z)) == {}
    torch.testing.assert_close(bound.error(scene.made(z + 0.5)), torch.full((2,), 0.25))


def test_inversion_that_hears(pipeline):
    scene = scene_of(pipeline, 0.5)
    x = random_x(scene)
    reference = scene.decode(x[:1])[0]
    bound = Inversion(reference=reference, sample_rate=RATE, spectral=0.3).bind(scene)
    made = scene.made(x)
    figures = bound.figures(made)
    assert abs(float(figures["mel, bel^2"][0])) < 1e-6 < float(figures["mel, bel^2"][1])
    torch.testing.assert_close(bound.error(made), figures["latents"] + 0.3 * figures["mel, bel^2"])
    # Its gradient through the decoder, along itself: the slope is its length.
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(bound.error(scene.made(x)).sum(), x)
    direction, step = gradient / gradient.norm(), 1e-2
    with torch.no_grad():
        ahead, behind = (bound.error(scene.made(x + s * direction)).sum() for s in (step, -step))
    torch.testing.assert_close((ahead - behind) / (2 * step), gradient.norm(), rtol=0.02, atol=0)


def controls(seconds=1.0):
    reference = {"reference": audio(seconds), "sample_rate": RATE}
    return {
        "outpaint": Outpaint(overlap=0.2, **reference),
        "inpaint": Inpaint(gap=(0.4, 0.6), overlap=0.2, **reference),
        "loop": Loop(overlap=0.2, **reference),
        "loop alone": Loop(overlap=0.2),
        "inversion": Inversion(**reference),
    }


@pytest.mark.parametrize("name", controls())
def test_gradients_are_those_of_finite_differences(pipeline, name):
    scene = scene_of(pipeline, batch=1)
    bound = controls()[name].bind(scene)
    x = random_x(scene).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bound.error(scene.made(x)), x)


@pytest.mark.parametrize("name", controls())
def test_optimisation_lowers_it(pipeline, name):
    result = optimize(pipeline, controls()[name], prompt="slow organ", seconds=1.0, seed=3, options=QUICK)
    (outcome,) = result.outcomes.values()
    assert float(outcome.error) < 0.97 * float(outcome.before) and outcome.history.shape == (6, 1)


@pytest.mark.parametrize("stereo", [False, True])
def test_joined_lengths(pipeline, stereo):
    seconds = 0.99
    music = audio(seconds, seed=5, channels=2 if stereo else 1)
    reference = {"reference": audio(1.23), "sample_rate": RATE}
    total, own = 9840, 7920
    joined = Outpaint(overlap=0.2, **reference).join(pipeline, music)
    assert joined.audio.shape == (len(music), total + own - 25 * HOP + joined.seams[0].shift)
    assert torch.equal(joined.audio[-1, :8000], reference["reference"][0, :8000])
    joined = Loop(overlap=0.2, **reference).join(pipeline, music)
    back = own - (124 - 25) * HOP
    shifts = sum(seam.shift for seam in joined.seams)
    assert joined.audio.shape[1] == total + own - 25 * HOP - back + shifts and back == 25 * HOP - 16
    joined = Loop(overlap=0.2).join(pipeline, music)
    assert joined.audio.shape[1] == 99 * HOP + joined.seams[0].shift
    filled = Inpaint(reference=audio(seconds), sample_rate=RATE, gap=(0.4, 0.6), overlap=0.2).join(pipeline, music)
    assert filled.audio.shape == music.shape and len(filled.seams) == 2
    # A reference that fills as many latents, its last not as far; and a gap that reaches its end.
    for longer in (audio(0.992), audio(0.985)):
        end = longer.shape[1] / RATE
        filled = Inpaint(reference=longer, sample_rate=RATE, gap=(0.4, 0.6), overlap=None).join(pipeline, music)
        assert filled.audio.shape[1] == longer.shape[1] and len(filled.seams) == 2
        filled = Inpaint(reference=longer, sample_rate=RATE, gap=(0.4, end), overlap=0.2).join(pipeline, music)
        assert filled.audio.shape[1] == min(longer.shape[1], own) and len(filled.seams) == 1


def test_another_rate_and_two_channels(pipeline):
    scene = scene_of(pipeline)
    reference = audio(2.0, channels=2)[:, : 2 * 11025]
    bound = Outpaint(reference=reference, sample_rate=11025, overlap=0.2).bind(scene)
    assert bound.target.shape == (25, 5)
    joined = Outpaint(reference=reference, sample_rate=11025, overlap=0.2).join(pipeline, audio(1.0))
    assert joined.audio.shape[0] == 1
    alone = Outpaint(reference=reference[0], sample_rate=11025, overlap=0.2).bind(scene)
    assert not torch.equal(alone.target, bound.target)


def test_what_contradicts_and_what_does_not(pipeline):
    scene, each = scene_of(pipeline), controls()
    with pytest.raises(ValueError, match="outpaint and inversion both ask for latents from 0 to 0"):
        bind_all([each["outpaint"], each["inversion"]], scene)
    assert len(bind_all([each["outpaint"], each["loop alone"]], scene)) == 2
    assert len(bind_all([each["outpaint"], each["inpaint"]], scene)) == 2  # 0 to 0.2, and 0.2 to 0.4 and 0.6 to 0.8


REFERENCE = {"reference": torch.zeros(1, 8000), "sample_rate": RATE}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Outpaint(overlap=1.0, **REFERENCE), "overlap must be shorter than the music's 1 s, got 1 s"),
        (lambda: Outpaint(overlap=0.0, **REFERENCE), "overlap must be above 0"),
        (lambda: Outpaint(overlap=float("nan"), **REFERENCE), "overlap must be above 0"),
        (
            lambda: Outpaint(reference=torch.zeros(1, 1000), sample_rate=RATE, overlap=0.2),
            "at least 0.2 s .* got 0.125",
        ),
        (lambda: Outpaint(reference=torch.zeros(1, 8000), sample_rate=0), "sample_rate of reference must be"),
        (lambda: Outpaint(reference=torch.full((8000,), torch.nan), sample_rate=RATE), "reference must be finite"),
        (lambda: Outpaint(reference=torch.zeros(3, 8000), sample_rate=RATE), r"\[2, samples\], got \(3, 8000\)"),
        (lambda: Inpaint(gap=(0.5, 0.4), **REFERENCE), "gap must be"),
        (lambda: Inpaint(gap=(-0.1, 0.4), **REFERENCE), "gap must be"),
        (lambda: Inpaint(gap=(0.5, 1.4), **REFERENCE), "gap must lie inside the reference's 1 s"),
        (lambda: Inpaint(gap=(0.0, 1.0), **REFERENCE), "gap must leave some"),
        (lambda: Inpaint(gap=(0.1, 0.4), overlap=0.2, **REFERENCE), "at most the 0.096 s that are before the gap"),
        (lambda: Inpaint(gap=(0.5, 0.9), overlap=0.2, **REFERENCE), "at most the 0.096 s that are behind the gap"),
        (lambda: Inpaint(gap=(0.4, 0.5), overlap=-1.0, **REFERENCE), "overlap must be above 0"),
        (
            lambda: Inpaint(reference=torch.zeros(9000), sample_rate=RATE, gap=(0.4, 0.5)),
            "as long as the music: it has 1.125 s, the music 1 s; give seconds=1.125",
        ),
        (lambda: Loop(overlap=0.6), "overlap must be at most half of the music's 1 s, got 0.6 s"),
        (lambda: Loop(reference=torch.zeros(8000)), "must be given together"),
        (lambda: Loop(reference=torch.zeros(3000), sample_rate=RATE, overlap=0.2), "at least 0.4 s .* got 0.375"),
        (lambda: Inversion(reference=torch.zeros(9000), sample_rate=RATE), "as long as the music"),
        (lambda: Inversion(spectral=-1.0, **REFERENCE), "spectral must be at least 0"),
    ],
)
def test_bad_input(pipeline, make, message):
    with pytest.raises(ValueError, match=message):
        make().bind(scene_of(pipeline))


def test_a_reference_that_is_no_audio(pipeline):
    with pytest.raises(TypeError, match="reference must be a floating-point tensor"):
        Outpaint(reference=[0.0] * 8000, sample_rate=RATE).bind(scene_of(pipeline))
