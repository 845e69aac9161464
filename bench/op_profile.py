"""Where the time of one model call goes, by kind of op, for any model with the DiT's module names.

PyTorch's profiler records every operator; hooks mark which module it ran in. An operator's own time (on CUDA: that of
its kernels) counts for the kind its innermost marked module stands for, attention apart. What no operator accounts for,
Python between them, is in no kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "bench "
KINDS = {
    "proj_in": "proj in, out",
    "proj_out": "proj in, out",
    "self_attention": "qk norm, rotary",
    "self_attention.qkv": "qkv",
    "self_attention.out": "out, cross q, cross out",
    "cross_attention": "qk norm, rotary",
    "cross_attention.q": "out, cross q, cross out",
    "cross_attention.out": "out, cross q, cross out",
    "mlp": "swiglu",
    "mlp.up": "mlp up",
    "mlp.down": "mlp down",
}
"""Module name (its last parts) → kind of what runs in it and in no marked module inside it; what is left is `seams`."""

ATTENTION_OPERATORS = ("scaled_dot_product", "presto_kernels::attention", "flash_attn")
ATTENTION = {"self_attention": "self-attention", "cross_attention": "cross-attention"}


@contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """Marks the modules of KINDS in what the profiler records, until the end of the block."""
    handles = []
    for name, module in model.named_modules():
        ending = next((e for e in (".".join(name.split(".")[-2:]), name.split(".")[-1]) if e in KINDS), None)
        if ending is not None:
            handles += _mark(module, ending)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mark(module: nn.Module, ending: str) -> list[Any]:
    entered: list[record_function] = []

    def enter(*_: object) -> None:
        entered.append(record_function(MARK + ending))
        entered[-1].__enter__()

    def leave(*_: object) -> None:
        entered.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def milliseconds_by_kind(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Runs `call` once under the profiler; its model must be `marked`."""
    with profiled(device) as recorded:
        call()
    total: Counter[str] = Counter()
    for event in recorded.events():
        if event.name.startswith(MARK) or event.device_type != torch.autograd.DeviceType.CPU:
            continue
        microseconds = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        total[_kind(event)] += microseconds / 1e3
    return dict(total)


@contextmanager
def profiled(device: torch.device) -> Iterator[profile]:
    """PyTorch's profiler around the block, with the device's kernels where there is one."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as recorded:
        yield recorded
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def _kind(event: Any) -> str:
    in_attention = False
    while event is not None:
        in_attention = in_attention or any(name in event.name for name in ATTENTION_OPERATORS)
        if event.name.startswith(MARK):
            module = event.name.removeprefix(MARK)
            return ATTENTION[module] if in_attention and module in ATTENTION else KINDS[module]
        event = event.cpu_parent
    return "seams"
