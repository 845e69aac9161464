"""What `python -m presto_models evaluate control` takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SHARD = re.compile(r"([1-9]\d*)/([1-9]\d*)")


@dataclass(frozen=True)
class ControlTableOptions:
    """What `evaluate control` takes."""

    out: str
    """Where the results go, as JSON."""
    rows: str | None = None
    """A TOML file of tasks and rows (presto_models.metrics.control.rows)."""
    data: str | None = None
    """Folder of audio files with captions, tags and splits (presto_models.data.folder)."""
    checkpoints: str | None = None
    """Folder in which checkpoints and adaptors are looked for, before those that ship and the hub."""
    docs: str | None = None
    """A Markdown page with the mark <!-- control -->, behind which the table is written."""
    plot: str | None = None
    """Where a figure goes: error against seconds (.png, .svg, .pdf)."""
    work: str | None = None
    """Folder of finished runs and embeddings; by default beside the results."""
    only: tuple[str, ...] = ()
    """Rows to make runs of now: TASK/NAME, TASK or NAME; the others keep the runs they have."""
    shard: str | None = None
    """i/n: make only every n-th run, the i-th (from 1) first, and no table; n processes make all."""
    collect: bool = False
    """Make no runs; measure those there are and write the table."""
    minutes: float | None = None
    """No run begins later than this after the beginning; what is missing is said in the table."""
    runs: int | None = None
    """Of each row, each with a held-out clip of its own; by default 12 on a CPU and 64 on CUDA."""
    seconds: float | None = None
    """Length of the music; by default 10 on a CPU and 32 on CUDA."""
    device: str | None = None
    """cpu or cuda; by default CUDA where there is one."""
    seed: int = 0
    """Draws clips and resamples; run i begins from the noise of seed + i."""
    training_clips: int = 400
    """Real training clips the tag classifiers learn from."""
    tags: tuple[str, ...] = ("collection", "instrument")
    """Tags to look for in the music."""
    resamples: int = 1000
    """Bootstrap resamples for the intervals."""
    shrinkage: float = 0.1
    """Of FAD's covariances towards a multiple of one: a row's clips are too few patches without it."""
    table_only: bool = False
    """Make page, figure and table from the results there are, and compute nothing."""
    json: bool = False
    """Print the results as JSON instead of a table."""

    def __post_init__(self) -> None:
        for name, least in (("runs", 1), ("training_clips", 1), ("resamples", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds must be above 0 and finite, got {self.seconds}")
        if self.collect and self.shard is not None:
            raise ValueError("shard and collect exclude each other: shards make runs, collect measures all of them")
        self.part()

    def part(self) -> tuple[int, int]:
        """(which of the shards from 0, of how many)."""
        if self.shard is None:
            return 0, 1
        found = _SHARD.fullmatch(self.shard)
        if found is None or int(found[1]) > int(found[2]):
            raise ValueError(f"shard must be i/n with i from 1 to n, such as 1/2; got {self.shard!r}")
        return int(found[1]) - 1, int(found[2])
