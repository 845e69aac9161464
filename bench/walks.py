"""One whole generation, watched: a Chrome trace of it, the profiler's own table, or NVTX ranges for Nsight Systems.

The ranges are named as the code's rooms are.  Calls are eager, also on CUDA: a replayed graph enters no range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from bench import ranges, show, stages, trace
from bench.generation import Generation, Implementation
from bench.names import PRESTO, REFERENCE
from bench.results import write_text

ROOMS = {
    stages.PROMPT: "presto_models.text/encode",
    stages.DECODE: "presto_models.autoencoders/decode",
    stages.STEREO: "presto_models.stereo/widen",
}
"""Stage → the room its range is named for, in the order in which presto walks through them around the steps."""


def write_trace(path: str, generation: Generation, found: Mapping[str, Implementation]) -> None:
    """A trace file: presto from prompt to waveform, and the reference's steps alone as a process of its own."""
    device = generation.setup.device
    processes = {}
    with show.stage("decoder and mono-to-stereo module: random weights"):
        around = stages.prepare(generation)
    for name in (PRESTO, REFERENCE):
        if name not in found:
            continue
        walk = partial(_walk, generation, found[name], around if name == PRESTO else None, nvtx=False)
        with show.stage(f"tracing one generation by {name}"), ranges.rooms(_roots(found[name], around)):
            processes[name] = trace.record(walk, device)
    trace.write(path, processes)


def for_nsight(generation: Generation, found: Mapping[str, Implementation]) -> None:
    """Each side's generation once, warmed up, with NVTX ranges, between cudaProfilerStart and cudaProfilerStop.

    PyTorch's profiler stays off: only one tool at a time can listen to CUDA.
    """
    with show.stage("decoder and mono-to-stereo module: random weights"):
        around = stages.prepare(generation)
    walks: dict[str, Callable[[], object]] = {}
    for name in (PRESTO, REFERENCE):
        if name in found:
            walks[name] = partial(_walk, generation, found[name], around if name == PRESTO else None, nvtx=True)
            walks[name]()
    with torch.cuda.profiler.profile():
        for name, walk in walks.items():
            with ranges.named(name, nvtx=True), ranges.rooms(_roots(found[name], around), nvtx=True):
                walk()
                torch.cuda.synchronize()
    show.console.print("one generation each, between cudaProfilerStart and cudaProfilerStop: nothing was timed")


def write_kernels(path: str, generation: Generation, presto: Implementation) -> None:
    """The profiler's table of one generation by presto: every operator and, on CUDA, every kernel."""
    on_cuda = generation.setup.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda) as recorded:
        generation.walk(presto)
        if on_cuda:
            torch.cuda.synchronize()
    order = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    text = recorded.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=80)
    write_text(path, text)


def _walk(generation: Generation, made: Implementation, around: stages.Stages | None, *, nvtx: bool) -> None:
    """Noise to latents in the rooms' ranges, with `around` also prompt, precomputation, decoder and stereo."""
    calls: dict[str, Callable[[], Any]] = {} if around is None else around.calls

    def stage(name: str) -> None:
        if name in calls:
            with ranges.named(ROOMS[name], nvtx=nvtx):
                calls[name]()

    stage(stages.PROMPT)
    if around is not None:
        with ranges.named("presto_models.dit/precompute", nvtx=nvtx):
            generation.prepare()
    with ranges.named("presto_models.diffusion/sample_pingpong", nvtx=nvtx):
        generation.walk(made)
    stage(stages.DECODE)
    stage(stages.STEREO)


def _roots(made: Implementation, around: stages.Stages) -> dict[str, nn.Module]:
    return {
        type(made.model).__module__: made.model,
        "presto_models.autoencoders": around.autoencoder,
        "presto_models.stereo": around.stereo,
    }
