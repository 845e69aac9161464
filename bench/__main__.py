"""python -m bench COMMAND: what every step and op of Presto costs, what would help, and whether it got slower.

look      latency    prompt to waveform: stages, steps, percentiles, cold start, memory, energy, targets
          steps      one step taken apart: per op, beside its floor; trace, roofline, waterfall
          ops        every fused op beside eager PyTorch, torch.compile and a copy
          scaling    cost against length, batch, depth and steps
          memory     what each stage holds
          ablate     each optimisation off, one at a time
          train      a training step;  distill   of each distillation method;  decode   the autoencoder
          ditto      a step of the search for a starting noise, its memory, and DITTO-2 against DITTO
          open       the models people have: untouched, compiled, accelerated
          quality    how good the music is that the fast model makes
hold      gate       this checkout against another commit, timed in turn;  simulate   how often the gate is wrong
          compare    two result files
tell      report     result files as one page, or as a summary for a pull request
          validate   result files against their schema;  docs   fills the tables of docs/ops
set       tune       measures this device for `auto`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from bench import (
    ablate,
    compare,
    decode,
    distill,
    ditto,
    docs,
    latency,
    memory,
    ops,
    quality,
    report,
    scaling,
    steps,
    train,
    tune,
    validate,
)
from bench.cli import BadOption, add_options, from_namespace
from bench.gate import run as gate
from bench.gate import simulate
from bench.open_models import run as open_models

COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "latency": (latency.LatencyOptions, latency.run),
    "steps": (steps.StepsOptions, steps.run),
    "ops": (ops.OpsOptions, ops.run),
    "scaling": (scaling.ScalingOptions, scaling.run),
    "memory": (memory.MemoryOptions, memory.run),
    "ablate": (ablate.AblateOptions, ablate.run),
    "train": (train.TrainOptions, train.run),
    "distill": (distill.DistillOptions, distill.run),
    "ditto": (ditto.DittoBenchOptions, ditto.run),
    "decode": (decode.DecodeOptions, decode.run),
    "open": (open_models.OpenOptions, open_models.run),
    "quality": (quality.QualityOptions, quality.run),
    "gate": (gate.GateOptions, gate.run),
    "simulate": (simulate.SimulateOptions, simulate.run),
    "compare": (compare.CompareOptions, compare.run),
    "report": (report.ReportOptions, report.run),
    "validate": (validate.ValidateOptions, validate.run),
    "docs": (docs.DocsOptions, docs.run),
    "tune": (tune.TuneOptions, tune.run),
}


def parser() -> argparse.ArgumentParser:
    """The command line: a subcommand for each of COMMANDS, its flags made from its options."""
    made = argparse.ArgumentParser(
        prog="python -m bench",
        usage="%(prog)s COMMAND [options]; COMMAND --help tells them",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    for name, (options, _) in COMMANDS.items():
        description = (options.__doc__ or "").splitlines()[0]
        prog = f"python -m bench {name}"
        add_options(commands.add_parser(name, prog=prog, description=description), options)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and runs one bench; returns its exit status."""
    namespace = parser().parse_args(arguments)
    options, run = COMMANDS[namespace.command]
    try:
        return run(from_namespace(options, namespace))
    except BadOption as error:
        print(f"python -m bench {namespace.command}: error: {error}", file=sys.stderr)
        raise


if __name__ == "__main__":
    sys.exit(main())
