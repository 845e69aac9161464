"""Options of the suites, and what every stored figure tells of itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import machine
from bench.cli import BadOption

Call = Callable[..., object]
LONGEST, MOST_ROUNDS = 1.0, 200  # seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("presto", "presto's suites")
    group.addoption("--device", choices=("cpu", "cuda"), help="without it cuda where there is one")
    group.addoption("--config", choices=("presto-32s", "tiny"), help="model sizes to time beside tiny ones")
    group.addoption("--shapes", choices=("first", "all"), default="first", help="each op's first shape, or all of them")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("bench/suites needs pytest-benchmark: pip install 'presto-kernels[bench]'")


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What pytest-benchmark compares before it compares figures: it warns where two files have different machines."""
    meta = machine.meta(_device(config))
    machine_info["presto"] = {name: meta[name] for name in ("device", "driver", "threads", "torch", "triton")}


def _device(config: pytest.Config) -> torch.device:
    try:
        return machine.pick_device(config.getoption("device"))
    except BadOption as error:
        raise pytest.UsageError(str(error)) from None


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return _device(pytestconfig)


@pytest.fixture(scope="session")
def about(device: torch.device) -> dict[str, Any]:
    """What stands beside every figure."""
    meta = machine.meta(device)
    return {"device": meta["device"], "commit": meta["commit"]}


@pytest.fixture
def time_it(benchmark: Any, device: torch.device, about: dict[str, Any]) -> Callable[..., None]:
    """time_it(call, prepare=None, **extra_info): the time of a call until the device is done.

    prepare: gives the argument of each call, and is not timed.
    """

    def timed(call: Call, *, prepare: Call | None = None, **extra_info: Any) -> None:
        def waited(*arguments: object) -> object:
            result = call(*arguments)
            machine.synchronize(device)
            return result

        benchmark.extra_info |= about | extra_info
        if prepare is None:
            benchmark(waited)
            return

        def setup() -> tuple[tuple[object, ...], dict[str, object]]:
            made = prepare()
            machine.synchronize(device)
            return (made,), {}

        benchmark.pedantic(waited, setup=setup, rounds=_rounds(waited, setup), warmup_rounds=1)

    return timed


def _rounds(call: Call, setup: Callable[[], Any]) -> int:
    """As many calls as fit in a second, five at least."""
    for _ in range(2):
        arguments, _ = setup()
        started = time.perf_counter()
        call(*arguments)
        seconds = time.perf_counter() - started
    return max(5, min(MOST_ROUNDS, round(LONGEST / max(seconds, 1e-6))))
