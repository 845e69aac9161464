"""Features on a CUDA device: what they are on the CPU, and held by a CUDA graph."""

import pytest
import torch

from presto_models.ditto.features import Chroma, Loudness, SelfSimilarity, Timbre

pytest.importorskip("transformers")  # its filter banks
RATE, SAMPLES = 44_100, 50_001


def loudness(device):
    return Loudness(SAMPLES, RATE, device=device)


def chroma(device):
    feature = Chroma(SAMPLES, RATE, device=device)
    return lambda audio: feature.log(feature.spectrum(audio))


def structure(device):
    timbre = Timbre(SAMPLES, RATE, device=device)
    similarity = SelfSimilarity(timbre.spectrum.frames, RATE / timbre.spectrum.hop, device=device)
    return lambda audio: similarity(timbre(timbre.spectrum(audio)))


def error_and_gradient(feature, audio):
    error = feature(audio).square().mean()
    return error.detach(), torch.autograd.grad(error, audio)[0]


@pytest.mark.parametrize("make", [loudness, chroma, structure])
def test_the_device_hears_what_the_cpu_hears(make):
    audio = 0.1 * torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(0))
    ours = make("cuda")(audio.cuda()).cpu()
    torch.testing.assert_close(ours, make("cpu")(audio), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [loudness, chroma, structure])
def test_a_graph_holds_feature_and_gradient(make):
    feature = make("cuda")
    audio = (0.1 * torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(0))).cuda().requires_grad_()
    side, current = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(2):
            error_and_gradient(feature, audio)
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = error_and_gradient(feature, audio)
    with torch.no_grad():
        audio.copy_(0.2 * torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(1)))
    graph.replay()
    for replayed, eager in zip(captured, error_and_gradient(feature, audio), strict=True):
        torch.testing.assert_close(replayed, eager)
