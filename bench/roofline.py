"""What a step must cost at least: the counted bytes and operations over a device's ceilings.

The floor of a kind is the longer of moving its bytes and doing its operations; that of a step is their sum, since one
kind waits for the other. Ceilings are measured on this device (`machine.measure_ceilings`), or are a datasheet's
(devices.toml) or the user's own numbers: what comes of those is a prediction and says so. No floor knows of launches,
gaps, or caches.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import show
from bench.cli import BadOption
from bench.counting import Count

FILE = Path(__file__).with_name("devices.toml")
DEVICES = ("a100", "h100", "h200", "b200")
MEASURED = "measured ceilings"
DATASHEET = "predicted from datasheet numbers, not measured"
GIVEN = "predicted from given numbers, not measured"
RATES = {"bf16": ("bf16", "fp8"), "fp16": ("fp16", "fp8"), "fp32": ("fp32", "tf32")}
"""Dtype of the model → at which of a device's rates its products are thought; the bytes are the dtype's in all."""


@dataclass(frozen=True)
class Efficiency:
    """Which share of its bandwidth and of its matmul rate a device is thought to reach."""

    memory: float = 0.9
    products: float = 0.75


@dataclass(frozen=True)
class Ceiling:
    """A device whose matrix products run at one rate.

    Attributes:
        rate: what the rate is of, "bf16" or "tf32".
        basis: where the numbers come from: MEASURED, DATASHEET or GIVEN.
    """

    device: str
    rate: str
    copy_gbs: float
    matmul_tflops: float
    basis: str
    source: str

    def floor_ms(self, counts: Mapping[str, Count], efficiency: Efficiency | None = None) -> float:
        """The floor of all kinds in turn; at `efficiency` of both ceilings."""
        share = efficiency or Efficiency(1.0, 1.0)
        copy, products = self.copy_gbs * share.memory, self.matmul_tflops * share.products
        return sum(count.floor_ms(copy, products) for count in counts.values())

    @property
    def ridge(self) -> float:
        """Operations a byte from which products and not memory set the floor."""
        return self.matmul_tflops * 1e3 / self.copy_gbs


def measured(meta: Mapping[str, Any], dtype: str) -> Ceiling:
    """This device, from the meta of a report."""
    ceilings = meta["ceilings"]
    return Ceiling(
        meta["device"],
        dtype,
        ceilings["copy_gbs"],
        ceilings["matmul_tflops"][dtype],
        MEASURED,
        "copy and matrix product, timed by this command",
    )


def from_datasheet(name: str, dtype: str) -> list[Ceiling]:
    """A device of devices.toml at each of the dtype's rates that it has."""
    with FILE.open("rb") as file:
        devices = tomllib.load(file)
    if name not in devices:
        raise BadOption(f"--devices: {name!r} is not one of {', '.join(devices)}")
    entry = devices[name]
    return [
        Ceiling(entry["name"], rate, entry["memory_gbs"], entry["tflops"][rate], DATASHEET, entry["source"])
        for rate in RATES[dtype]
        if rate in entry["tflops"]
    ]


def from_numbers(text: str, dtype: str) -> Ceiling:
    """ "mine:3350:989" → the device "mine" with 3350 GB/s and 989 TFLOP/s of the model's dtype."""
    name, *numbers = text.rsplit(":", 2)
    try:
        gbs, tflops = (float(number) for number in numbers)
    except ValueError:
        gbs = tflops = math.nan
    if not (name and 0 < gbs < math.inf and 0 < tflops < math.inf):
        raise BadOption(f"--device-numbers: {text!r}; must be name:GB/s:TFLOP/s, such as mine:3350:989")
    return Ceiling(name, dtype, gbs, tflops, GIVEN, "--device-numbers")


def efficiency_of(values: Sequence[float]) -> Efficiency:
    """--efficiency's two numbers."""
    if len(values) != 2 or not all(0 < value <= 1 for value in values):
        shown = " ".join(map(str, values))
        raise BadOption(f"--efficiency: must be two shares above 0 and at most 1, memory and products; got {shown}")
    return Efficiency(*values)


def predict(
    ceilings: Sequence[Ceiling],
    step: Mapping[str, Count],
    generations: Mapping[str, Sequence[Mapping[str, Count]]],
    efficiency: Efficiency,
) -> dict[str, Any]:
    """Device → what a step and whole generations would cost, bound and at `efficiency`, for each rate; JSON.

    Args:
        step: the counts of one step.
        generations: "full" and "scheduled" → the counts of every step of one.
    """
    found: dict[str, Any] = {}
    for ceiling in ceilings:
        at = {"copy_gbs": ceiling.copy_gbs, "basis": ceiling.basis, "source": ceiling.source, "rates": {}}
        device = found.setdefault(ceiling.device, at | {"efficiency": asdict(efficiency)})
        rate: dict[str, float] = {"matmul_tflops": ceiling.matmul_tflops}
        for suffix, share in (("_ms", None), ("_ms_at_efficiency", efficiency)):
            rate["step" + suffix] = round(ceiling.floor_ms(step, share), 4)
            for name, steps in generations.items():
                rate[name + suffix] = round(sum(ceiling.floor_ms(counts, share) for counts in steps), 4)
        device["rates"][ceiling.rate] = rate
    return found


def predicted_table(predicted: Mapping[str, Any], steps: int) -> Table:
    """A row for each device and rate: the bound, and what comes of the efficiency."""
    shares = next(iter(predicted.values()))["efficiency"]
    columns = ("device", "products", "GB/s", "TFLOP/s", "one step", f"{steps} steps", "layer schedule")
    rows = []
    for name, device in predicted.items():
        for rate, at in device["rates"].items():
            pairs = [
                f"{show.number(at[what + '_ms'])} / {show.number(at[what + '_ms_at_efficiency'])}"
                for what in ("step", "full", "scheduled")
            ]
            rows.append((name, rate, f"{device['copy_gbs']:g}", f"{at['matmul_tflops']:g}", *pairs))
    basis = "; ".join(dict.fromkeys(device["basis"] for device in predicted.values()))
    title = (
        f"{basis}\n"
        f"ms at least / at {shares['memory']:g} of bandwidth and {shares['products']:g} of products; "
        "launches and gaps not counted"
    )
    return show.table(title, columns, rows, left=2)
