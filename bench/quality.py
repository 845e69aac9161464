"""`python -m bench quality`: how good the music is that `generate` makes, and how long it takes, beside its teacher.

A fast generator that plays noise would win every other bench.  This one holds its music against held-out pieces, as
`python -m presto_models evaluate methods` does for all methods (docs/distillation.md), in two rows: the checkpoint, and
the one it was distilled from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench import machine
from bench.cli import option
from presto_models.checkpoint import DEFAULT_CHECKPOINT, find_folder
from presto_models.components import base_of
from presto_models.metrics.method_rows import Row


@dataclass(frozen=True)
class QualityOptions:
    """Distance from held-out music, diversity and speed of what `generate` plays, beside its teacher."""

    data: str = option("data/audio", "folder of audio with captions, tags and splits (presto_models data render)")
    checkpoint: str = option(DEFAULT_CHECKPOINT, "a shipped name, a folder or a hub id")
    clips: int = option(80, "clips in each set; FAD needs more than 200 whole patches of 3 s")
    seconds: float = option(10.0, "length of each clip")
    dtype: str = option("bf16", "dtype of the diffusion model", choices=("bf16", "fp32"))
    device: str | None = option(None, "cpu or cuda; without it cuda where there is one", choices=("cpu", "cuda"))
    rounds: int = option(5, "rounds of timing")
    json: str = option("bench/results/quality.json", "where the results go; clips and embeddings are kept beside it")


def rows_of(checkpoint: str) -> list[Row]:
    """The teacher, where the checkpoint names one, and the checkpoint."""
    base = base_of(find_folder(checkpoint))
    return [*([] if base is None else [Row("teacher", base)]), Row("generator", checkpoint)]


def run(options: QualityOptions) -> int:
    """Measures both, writes ``options.json`` and shows the table."""
    # Here, so that the other benches run where what these need is not installed.
    from presto_models.metrics.method_options import MethodsOptions
    from presto_models.metrics.method_report import show_methods
    from presto_models.metrics.methods import measure
    from presto_models.metrics.musicnn import MusicNN
    from presto_models.metrics.players import PipelinePlayers

    rows = rows_of(options.checkpoint)
    asked = MethodsOptions(
        out=options.json,
        data=options.data,
        clips=options.clips,
        seconds=options.seconds,
        dtype=options.dtype,  # type: ignore[arg-type]
        device=options.device,
        prompts=0,  # diversity is in the table of methods; here it would double the time
        time_rounds=options.rounds,
    )
    place = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    players = PipelinePlayers(options.seconds, place, machine.DTYPES[options.dtype], None)
    show_methods(measure(asked, rows, players, MusicNN.load()))
    return 0
