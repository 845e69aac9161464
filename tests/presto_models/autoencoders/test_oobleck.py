"""Oobleck is diffusers' Oobleck: the same numbers, whole, in chunks, in any layout, and backwards."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oobleck_models import TINY, diffusers_model
from torch.utils._python_dispatch import TorchDispatchMode

from presto_kernels.oobleck import Chain, channels_last, layers
from presto_kernels.testing import check, within
from presto_models.autoencoders import Oobleck, OobleckConfig, oobleck_from_state_dict

TILE = 96  # a few positions, so that small signals are computed in many tiles


def make(dtype=torch.float64, config=TINY):
    plain = diffusers_model(config)
    ours = oobleck_from_state_dict(plain.float().state_dict()).to(dtype)
    return tiled(ours, TILE), plain.to(dtype)


def tiled(model, tile):
    for module in model.modules():
        if isinstance(module, Chain) and module.tile is not None:
            module.tile = tile
    return model


def latents(batch, count, dtype=torch.float64, seed=1):
    return torch.randn(batch, count, TINY.latent_channels, generator=torch.Generator().manual_seed(seed)).to(dtype)


def audio(batch, samples, dtype=torch.float64, seed=2):
    return 0.3 * torch.randn(batch, 2, samples, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(scope="module")
def pair():
    return make()


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-6)  # the weights were folded in fp32


@pytest.mark.parametrize("gradients", [False, True])
def test_decode_and_posterior_are_those_of_diffusers(pair, gradients):
    ours, plain = pair
    z, x = latents(2, 31), audio(2, 31 * TINY.hop)
    with torch.set_grad_enabled(gradients):
        close(ours.decode(z), plain.decode(z.mT).sample)
        distribution = plain.encode(x).latent_dist
        mean, std = ours.posterior(x)
        close(mean, distribution.mean.mT)
        close(std, distribution.std.mT)
        assert torch.equal(ours.encode(x), mean)


@pytest.mark.parametrize("channels", [1, 2])
def test_mono_and_stereo(channels):
    config = OobleckConfig(8, 8, (1, 2), (2, 4), 4, channels)
    ours, plain = make(config=config)
    z = latents(1, 40)
    with torch.no_grad():
        y = ours.decode(z)
        close(y, plain.decode(z.mT).sample)
        assert y.shape == (1, channels, 40 * 8)
        close(ours.encode(y), plain.encode(y).latent_dist.mean.mT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradients", [False, True])
def test_errors_are_within_the_contract(dtype, gradients):
    ours, plain = make(dtype)
    wide = diffusers_model()
    z, x = latents(2, 31, dtype), audio(2, 31 * TINY.hop, dtype)
    eps = torch.finfo(dtype).eps
    with torch.set_grad_enabled(gradients):
        results = {
            "decode": (ours.decode(z), wide.decode(z.double().mT).sample, plain.decode(z.mT).sample),
            "chunked": (ours.decode_chunked(z, chunk=7), wide.decode(z.double().mT).sample, plain.decode(z.mT).sample),
        }
        right, usual = wide.encode(x.double()).latent_dist, plain.encode(x).latent_dist
        mean, std = ours.posterior(x)
        results |= {"mean": (mean, right.mean.mT, usual.mean.mT), "std": (std, right.std.mT, usual.std.mT)}
    assert all(got.dtype == torch.float32 and got.is_contiguous() for got, _, _ in results.values())
    check([within(name, *tensors, rowwise=False, eps=eps) for name, tensors in results.items()])


@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(1, 2), count=st.integers(1, 40), chunk=st.integers(1, 50), tile=st.sampled_from([7, 64, 10000])
)
def test_any_chunk_and_any_tile_give_the_whole_decode(pair, batch, count, chunk, tile):
    ours, _ = pair
    z = latents(batch, count)
    with torch.no_grad():
        whole = tiled(ours, 10**9).decode(z)
        assert whole.shape == (batch, 2, count * TINY.hop)
        for got in (tiled(ours, tile if count < 10 else 64).decode_chunked(z, chunk=chunk), ours.decode(z)):
            torch.testing.assert_close(got, whole, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(begin=st.integers(0, 470), size=st.integers(1, 200))
def test_any_stretch_of_the_encoder_is_that_of_the_whole(pair, begin, size):
    ours, _ = pair
    x = audio(1, 10 * TINY.hop)
    encoder = ours.encoder[:-1]
    chain = Chain(list(encoder))
    count = chain.length(x.shape[-1])
    begin, end = begin % count, min(begin % count + size, count)
    low, high = chain.source(begin, end)
    with torch.no_grad():
        whole = chain(x, 0, count, x.shape[-1])
        part = chain(x[..., max(0, low) : min(high, x.shape[-1])], begin, end, x.shape[-1])
    torch.testing.assert_close(part, whole[..., begin:end], rtol=0, atol=1e-12)


def test_the_context_is_exactly_what_a_latent_reaches(pair):
    """Read off the gradient: audio of latent 20 depends on `context` latents on both sides and on no other."""
    ours, _ = pair
    z = latents(1, 41).requires_grad_()
    ours.decode(z)[..., 20 * TINY.hop : 21 * TINY.hop].sum().backward()
    reached = z.grad[0].abs().sum(-1).nonzero().flatten()
    before, behind = ours.context
    assert (reached[0].item(), reached[-1].item()) == (20 - before, 20 + behind)


def test_chunks_bound_the_memory(pair):
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape[-1] != 600 * TINY.hop:  # all but the audio itself
                self.elements = max(self.elements, result.numel())
            return result

    ours, _ = pair
    z = latents(1, 600)
    found = []
    with torch.no_grad():
        for decode in (tiled(ours, 10**9).decode, lambda z: ours.decode_chunked(z, chunk=16)):
            with Largest() as largest:
                decode(z)
            found.append(largest.elements)
    assert found[1] * 8 < found[0]


def test_gradients_reach_the_latents_and_are_those_of_diffusers(pair):
    ours, plain = pair
    z, weights = latents(1, 15), audio(1, 15 * TINY.hop)
    grads = []
    for decode in (ours.decode, lambda z: plain.decode(z.mT).sample, lambda z: ours.decode_chunked(z, chunk=4)):
        leaf = z.clone().requires_grad_()
        (decode(leaf) * weights).sum().backward()
        grads.append(leaf.grad)
    assert grads[1].abs().max() > 1e-3
    close(grads[0], grads[1])
    close(grads[2], grads[1])


@pytest.mark.parametrize("samples", [1, TINY.hop - 1, TINY.hop, 5 * TINY.hop + 3])
def test_audio_is_padded_to_whole_latents(pair, samples):
    ours, _ = pair
    x = audio(1, samples)
    padded = torch.nn.functional.pad(x, (0, -samples % TINY.hop))
    with torch.no_grad():
        z = ours.encode(x)
        assert z.shape == (1, ours.latents_for(samples), TINY.latent_channels)
        assert torch.equal(z, ours.encode(padded))


def test_without_gradients_a_cpu_stays_channels_last():
    """What the speed rests on: no layer turns its input or its output round."""
    ours, _ = make(torch.bfloat16)
    seen = []
    for module in ours.modules():
        if isinstance(module, layers.Layer) and not isinstance(module, Chain):
            module.register_forward_hook(lambda m, args, y: seen.append((channels_last(args[0]), channels_last(y))))
    with torch.inference_mode():
        ours.encode(ours.decode(latents(1, 9)))
    assert len(seen) > 30 and all(both == (True, True) for both in seen)
    convolutions = [module for module in ours.modules() if isinstance(module, layers.Conv)]
    assert all(channels_last(module.weight) for module in convolutions)  # after loading and casting too


def test_as_matrix_products_the_numbers_are_the_same(monkeypatch):
    """How a processor with AMX runs it."""
    ours, _ = make(torch.bfloat16)
    z = latents(1, 31, torch.bfloat16)
    wide = diffusers_model().decode(z.double().mT).sample
    with torch.no_grad():
        usual = ours.decode(z)
        monkeypatch.setattr(layers, "_has_amx", lambda: True)
        products = []
        linear = torch.nn.functional.linear
        monkeypatch.setattr(torch.nn.functional, "linear", lambda *a: products.append(a[0].shape) or linear(*a))
        got = ours.decode(z)
    assert any(shape[-1] == 7 * TINY.channels for shape in products)
    check([within("decode", got, wide, usual, rowwise=False, eps=torch.finfo(torch.bfloat16).eps)])


def test_sizes():
    with torch.device("meta"):
        stable, presto = (Oobleck(OobleckConfig.named(name)) for name in ("stable-audio", "presto-32s"))
    assert round(sum(p.numel() for p in stable.decoder.parameters()) / 1e6, 1) == 78.1
    assert (stable.hop, stable.audio_channels, stable.latent_channels, stable.context) == (2048, 2, 64, (10, 10))
    assert (presto.hop, presto.audio_channels, presto.latent_channels) == (1024, 1, 64)
    assert presto.latents_for(32 * 44100) == 1379
    assert OobleckConfig.from_dict(TINY.to_dict()) == TINY


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strides": (2, 3, 4)}, "even"),
        ({"strides": (2, 4)}, "as many strides"),
        ({"multiples": (0, 1, 2)}, "multiples"),
        ({"channels": 0}, "channels"),
        ({"audio_channels": 3}, "audio_channels"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        OobleckConfig.from_dict(TINY.to_dict() | changes)


def test_what_does_not_fit_is_refused_by_name(pair):
    ours, _ = pair
    with pytest.raises(ValueError, match=r"latents must be .*\[B, N, 4\]"):
        ours.decode(torch.zeros(1, 4, 9))
    with pytest.raises(ValueError, match=r"audio must be .*\[B, 2, T\]"):
        ours.encode(torch.zeros(1, 1, 96))
    with pytest.raises(ValueError, match="latents must be"):
        ours.decode_chunked(torch.zeros(1, 0, 4))
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        ours.decode_chunked(torch.zeros(1, 3, 4), chunk=0)
    with pytest.raises(ValueError, match="name must be one of stable-audio"):
        OobleckConfig.named("dac")
