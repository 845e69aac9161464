"""Oobleck on a GPU: within the contract of the CPU's float64, and captured as one graph."""

import copy

import pytest
import torch

from presto_kernels import accelerate, capture, restore
from presto_kernels.testing import check, within
from presto_models.autoencoders import Oobleck, OobleckConfig

CONFIG = OobleckConfig(channels=32, encoder_channels=32, multiples=(1, 2, 4), strides=(2, 4, 8), latent_channels=16)


def make(dtype):
    torch.manual_seed(0)
    return Oobleck(CONFIG).eval().requires_grad_(False).cuda().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_and_encode(dtype):
    ours, wide = make(dtype), make(torch.float64)
    latents = torch.randn(2, 37, 16, device="cuda").to(dtype)
    with torch.inference_mode():
        audio, oracle = ours.decode(latents), wide.decode(latents.double())
        plain = ours.cpu().decode(latents.cpu()).cuda()
        eps = torch.finfo(dtype).eps
        chunked = ours.cuda().decode_chunked(latents, chunk=9)
        check([within(n, y, oracle, plain, rowwise=False, eps=eps) for n, y in (("whole", audio), ("chunks", chunked))])
        assert ours.encode(audio).shape == (2, 37, 16)


def test_decode_is_captured_and_replayed():
    ours = make(torch.bfloat16)
    latents = torch.randn(1, 37, 16, device="cuda").bfloat16()
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            ours.decode(latents)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            audio = ours.decode(latents)
        latents.copy_(torch.randn_like(latents))
        graph.replay()
        torch.testing.assert_close(audio, ours.decode(latents))


def theirs():
    autoencoder = pytest.importorskip("diffusers").AutoencoderOobleck
    torch.manual_seed(0)
    return autoencoder(32, [2, 4, 8], [1, 2, 4], 32, 16, 2).eval().cuda()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_accelerated_diffusers(side, dtype):
    plain, fused, wide = (getattr(theirs().to(dtype), side) for _ in range(3))
    x = torch.randn(2, *((16, 37) if side == "decoder" else (2, 37 * 64 + 5)), device="cuda").to(dtype)
    with torch.inference_mode():
        got, usual, right = accelerate(fused)(x), plain(x), wide.double()(x.double())
    assert not fused._presto.passed_on
    check([within(side, got, right, usual, rowwise=False, eps=torch.finfo(dtype).eps)])


def test_accelerated_diffusers_as_a_graph_sees_new_weights():
    fused = accelerate(theirs().decoder)
    graphed = capture(fused)
    x = torch.randn(1, 16, 37, device="cuda")
    with torch.no_grad():
        torch.testing.assert_close(graphed(x), fused(x))
        for change in (lambda: fused.snake1.alpha.add_(0.5), lambda: fused.cuda() and fused.snake1.alpha.sub_(0.2)):
            before = graphed(x)
            change()
            got = graphed(x)
            assert not torch.allclose(got, before, atol=1e-3)
            torch.testing.assert_close(got, restore(copy.deepcopy(fused))(x), rtol=1e-3, atol=1e-3)
