import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from presto_models.checkpoint import CheckpointError, save_weights
from presto_models.stereo import FLOOR, MonoToStereo, StereoConfig, delayed, istft, load_stereo, save_stereo, stft
from presto_models.stereo_objective import mid_side, side_statistics, statistics_loss, stereo_figures, stereo_loss

TINY = StereoConfig.named("tiny")
THREE_TAPS = dataclasses.replace(TINY, taps=(0, 1, 3))


def random_module(config: StereoConfig = THREE_TAPS, seed: int = 0, head: float = 0.5) -> MonoToStereo:
    """Weights that all matter; the head's are drawn too, so that the side is loud."""
    torch.manual_seed(seed)
    module = MonoToStereo(config)
    torch.nn.init.normal_(module.head.weight, std=head)
    torch.nn.init.normal_(module.head.bias, std=head)
    return module.eval()


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.2


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    samples=st.integers(1, 700),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    weights=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_downmix_is_the_mono_signal(batch, samples, dtype, weights):
    mid = noise(batch, 1, samples).to(dtype)
    with torch.inference_mode():
        stereo = random_module().to(weights)(mid)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert stereo.shape == (batch, 2, samples) and stereo.dtype == wide
    bound = 2 * torch.finfo(wide).eps * stereo.abs().max()
    assert (stereo.mean(1, keepdim=True) - mid.to(wide)).abs().max() <= bound
    assert (stereo[:, 0] - stereo[:, 1]).abs().max() > 1e-5


def test_a_fresh_module_is_exactly_dual_mono():
    mid = noise(2, 1, 1001)
    stereo = MonoToStereo(THREE_TAPS)(mid)
    assert torch.equal(stereo, mid.expand(2, 2, -1))


def test_the_side_is_bounded_whatever_the_weights():
    module = random_module(head=1e4)
    mid = noise(2, 1, 3001)
    gains = module.gains(side_statistics(module, mid.expand(2, 2, -1)).taps[..., 0, 0].real)
    assert gains.abs().square().sum(-1).max() <= module.config.max_gain**2 * (1 + 1e-5)
    _, side = mid_side(module(mid))
    assert side.square().sum() <= module.config.max_gain**2 * len(module.config.taps) * mid.square().sum()
    assert side.square().sum() > 0.1 * mid.square().sum()


def test_silence_stays_silence():
    assert torch.equal(random_module()(torch.zeros(1, 1, 777)), torch.zeros(1, 2, 777))


def test_the_same_twice_and_each_sample_by_itself():
    module, mid = random_module(), noise(3, 1, 900)
    stereo = module(mid)
    assert torch.equal(stereo, module(mid))
    torch.testing.assert_close(module(mid[1:2]), stereo[1:2])


def test_gains_see_only_their_surroundings():
    module, mid = random_module(), noise(1, 1, 64 * 60)
    changed = mid.clone()
    changed[..., -64:] = 0
    frames = TINY.num_blocks * (TINY.kernel_size // 2) + 4 + 3
    same = mid.shape[-1] - (frames + 1) * TINY.hop
    torch.testing.assert_close(module(mid)[..., :same], module(changed)[..., :same])
    assert not torch.allclose(module(mid)[..., same:-64], module(changed)[..., same:-64], atol=1e-4)


def test_gradients_reach_every_weight_and_the_input():
    module, mid = random_module(), noise(1, 1, 800).requires_grad_()
    module(mid).square().sum().backward()
    for name, weight in [("mid", mid), *module.named_parameters()]:
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.abs().sum() > 0, name


def test_a_fresh_module_can_start_to_learn():
    module = MonoToStereo(THREE_TAPS)
    stereo_loss(module, noise(2, 2, 2000))[0].backward()
    assert module.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("samples", [1, 255, 256, 1000])
def test_spectra_are_torchs_and_come_back(samples):
    audio = noise(2, samples).double()
    spectrum = stft(audio, 256)
    padded = torch.nn.functional.pad(audio, (192, 192 + -samples % 64))
    window = torch.hann_window(256, dtype=torch.float64)
    theirs = torch.stft(padded, 256, 64, window=window, center=False, return_complex=True)
    torch.testing.assert_close(spectrum, theirs.mT)
    torch.testing.assert_close(istft(spectrum, 256, samples), audio)


def test_every_bin_has_one_band():
    for name in ("presto-tiny", "presto-32s", "tiny"):
        config = StereoConfig.named(name)
        edges = config.coarse_edges
        assert len(edges) == config.coarse_bands + 1 and edges[-1] == config.num_bins
        assert edges == sorted(set(edges))
    module = MonoToStereo(TINY)
    values = noise(2, 3, TINY.num_bins)
    by_hand = torch.zeros(2, 3, TINY.num_bands).index_add(-1, module.band_of_bin, values)
    torch.testing.assert_close(module.band_sums(values), by_hand)


def test_the_loss_is_that_of_the_spectra_themselves():
    module, audio = random_module(head=0.2), noise(2, 2, 2000).double()
    parts = stereo_loss(module.double(), audio)[1]
    mid, side = (stft(signal[:, 0], 256) / 64 for signal in mid_side(audio.float()))

    def power(spectrum):
        return module.band_sums(spectrum.abs().square())

    gains = module.gains(power(mid))[..., module.band_of_bin, :]
    made = sum(gains[..., k] * delayed(mid, delay) for k, delay in enumerate(THREE_TAPS.taps))

    def distance(a, b):
        return ((power(a) + FLOOR).log() - (power(b) + FLOOR).log()).abs().mean()

    level = power(mid) + power(side) + FLOOR
    torch.testing.assert_close(parts["complex"], (power(made - side) / level**0.75).sum() / (level**0.25).sum())
    channels = distance(mid + made, mid + side) + distance(mid - made, mid - side)
    torch.testing.assert_close(parts["channels"], channels)
    made_width, width = ((power(s) + power(mid) / 32 + FLOOR).log() for s in (made, side))
    torch.testing.assert_close(parts["side"], (made_width - width).abs().mean())


def test_the_loss_is_the_weighted_sum_of_its_parts_and_nothing_for_mono():
    audio = noise(2, 2, 1500)
    loss, parts = stereo_loss(random_module(), audio)
    torch.testing.assert_close(loss.detach(), 10 * parts["complex"] + parts["channels"] + parts["side"])
    assert set(parts) == {"complex", "channels", "side"} and all(part > 0 for part in parts.values())
    mono = audio[:, :1].expand(-1, 2, -1)
    assert stereo_loss(MonoToStereo(TINY), mono)[0] == 0
    assert stereo_loss(random_module(), mono)[0] > 0
    assert stereo_loss(random_module(), torch.zeros(1, 2, 500))[0].isfinite()


def test_figures_of_truth_mono_and_a_half_way_side():
    truth = noise(1, 2, 20000) + noise(1, 1, 20000, seed=2) * torch.tensor([1.0, 0.3])[:, None]
    mid, side = mid_side(truth)
    figures = {
        share: stereo_figures(torch.cat([mid + share * side, mid - share * side], dim=1), truth)
        for share in (0, 0.5, 1)
    }
    assert figures[0]["side_sdr"] == 0 and figures[0]["side_correlation"] == figures[0]["level_correlation"] == 0
    assert figures[0.5]["side_sdr"] == pytest.approx(20 * math.log10(2), abs=1e-3)
    assert figures[0.5]["side_correlation"] == pytest.approx(1)
    assert figures[0.5]["width_error"] == pytest.approx(20 * math.log10(2), abs=0.05)
    assert figures[1]["side_sdr"] > 60 and figures[1]["level_correlation"] == pytest.approx(1)
    for name in ("level_error", "width_error", "coherence_error"):
        assert figures[0][name] > figures[0.5][name] > 0.01 > figures[1][name] >= 0, name
    with pytest.raises(ValueError, match="8192"):
        stereo_figures(truth[..., :8000], truth[..., :8000])


def test_learns_that_low_is_left_and_high_is_right():
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, sample_rate=8000)
    time = torch.arange(8000) / config.sample_rate

    def music(seed):
        drawn = torch.rand((2, 2), generator=torch.Generator().manual_seed(seed))
        low, high = 200 + 300 * drawn[0], 1500 + 1500 * drawn[1]
        tones = [sum(torch.sin(2 * math.pi * f * time) for f in tone) * 0.1 for tone in (low, high)]
        return torch.stack(tones)[None]

    module = MonoToStereo(config)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for step in range(80):
        loss, _ = stereo_loss(module, torch.cat([music(4 * step + k) for k in range(4)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    truth = music(10**6)
    mid, side = mid_side(truth)
    with torch.inference_mode():
        made, error = module(mid), mid_side(module(mid))[1] - side
    assert 10 * torch.log10(side.square().sum() / error.square().sum()) > 10
    left_only, right_only = made[0, 0] @ truth[0, 0], made[0, 1] @ truth[0, 0]
    assert left_only > 5 * right_only.abs()


def test_saved_and_loaded(tmp_path):
    module, mid = random_module(), noise(1, 1, 900)
    path = save_stereo(module, tmp_path / "stereo.safetensors")
    loaded = load_stereo(path)
    assert loaded.config == THREE_TAPS and not loaded.training
    assert torch.equal(loaded(mid), module(mid))
    half = load_stereo(save_stereo(random_module().bfloat16(), tmp_path / "half.safetensors"))
    assert next(half.parameters()).dtype == torch.float32
    torch.testing.assert_close(half(mid), module(mid), atol=2e-2, rtol=0)


def test_a_checkpoint_that_does_not_fit_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_stereo(tmp_path / "none.safetensors")
    path = save_stereo(random_module(), tmp_path / "stereo.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="whole"):
        load_stereo(path)
    for config in ({"width": 3}, {**TINY.to_dict(), "n_fft": 7}):
        save_weights(path, {"x": torch.zeros(1)}, kind="stereo", config=config)
        with pytest.raises(CheckpointError, match="makes no stereo module"):
            load_stereo(path)
    save_weights(path, MonoToStereo(TINY).state_dict(), kind="stereo", config=THREE_TAPS.to_dict())
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        load_stereo(path)
    save_weights(path, {"x": torch.zeros(1)}, kind="diffusion", config={})
    with pytest.raises(CheckpointError, match="diffusion"):
        load_stereo(path)


@pytest.mark.parametrize("shape", [(1, 2, 100), (1, 100), (100,), (1, 1, 0), (1, 1, 1, 100)])
def test_only_mono_audio_is_taken(shape):
    with pytest.raises(ValueError, match="mono"):
        MonoToStereo(TINY)(torch.zeros(shape))


def test_integers_are_no_audio():
    with pytest.raises(TypeError, match="int16"):
        MonoToStereo(TINY)(torch.zeros(1, 1, 100, dtype=torch.int16))


@pytest.mark.parametrize("audio", [torch.zeros(1, 1, 100), torch.zeros(2, 100), torch.zeros(1, 2, 0)])
def test_only_stereo_audio_is_learned_from(audio):
    with pytest.raises(ValueError, match="stereo"):
        stereo_loss(MonoToStereo(TINY), audio)
    with pytest.raises(ValueError, match="stereo"):
        stereo_loss(MonoToStereo(TINY), torch.zeros(1, 2, 100, dtype=torch.int32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim"),
        ({"n_fft": 1023}, "n_fft"),
        ({"fine_bands": 128}, "bands"),
        ({"taps": ()}, "taps"),
        ({"taps": (1, 2)}, "taps"),
        ({"taps": (0, 2, 2)}, "taps"),
        ({"kernel_size": 4}, "kernel_size"),
        ({"max_gain": 0.0}, "max_gain"),
    ],
)
def test_bad_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_configs_travel_as_json():
    assert StereoConfig.from_dict(THREE_TAPS.to_dict()) == THREE_TAPS
    with pytest.raises(ValueError, match="presto-tiny"):
        StereoConfig.named("huge")


def test_statistics_do_not_depend_on_the_weights():
    audio = noise(1, 2, 900)
    one, two = (side_statistics(random_module(seed=seed), audio) for seed in (0, 1))
    assert torch.equal(one.taps, two.taps) and torch.equal(one.side_taps, two.side_taps)
    assert not one.taps.requires_grad
    assert statistics_loss(random_module(), one)[0].requires_grad
