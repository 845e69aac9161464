"""python -m bench latency | steps | train | distill | decode | memory | ops | quality | tune | docs

python -m bench distill          # one training step of each distillation method beside plain PyTorch
python -m bench distill --kept   # Presto-L's step with mixed batches against the share of blocks they keep
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from bench import compare, decode, distill, docs, latency, memory, ops, quality, steps, train, tune
from bench.cli import BadOption, add_options, from_namespace
from bench.gate import run as gate
from bench.gate import simulate

COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "latency": (latency.LatencyOptions, latency.run),
    "steps": (steps.StepsOptions, steps.run),
    "train": (train.TrainOptions, train.run),
    "distill": (distill.DistillOptions, distill.run),
    "decode": (decode.DecodeOptions, decode.run),
    "ops": (ops.OpsOptions, ops.run),
    "memory": (memory.MemoryOptions, memory.run),
    "quality": (quality.QualityOptions, quality.run),
    "docs": (docs.DocsOptions, docs.run),
    "compare": (compare.CompareOptions, compare.run),
    "simulate": (simulate.SimulateOptions, simulate.run),
    "gate": (gate.GateOptions, gate.run),
    "tune": (tune.TuneOptions, tune.run),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and runs one bench; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=sys.modules["bench"].__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (options, _) in COMMANDS.items():
        summary = (options.__doc__ or "").splitlines()[0]
        add_options(commands.add_parser(name, help=summary, description=summary), options)
    namespace = parser.parse_args(arguments)
    options, run = COMMANDS[namespace.command]
    try:
        return run(from_namespace(options, namespace))
    except BadOption as error:
        print(f"python -m bench {namespace.command}: error: {error}", file=sys.stderr)
        raise


if __name__ == "__main__":
    sys.exit(main())
