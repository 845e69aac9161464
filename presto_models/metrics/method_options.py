"""What `python -m presto_models evaluate methods` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MethodsOptions:
    """What `evaluate methods` takes."""

    out: str
    """Where the results go, as JSON; what stands there already is kept where it was made the same way."""
    rows: str | None = None
    """A TOML file of rows (presto_models.metrics.method_rows)."""
    data: str | None = None
    """Folder of audio files with captions, tags and splits (presto_models.data.folder)."""
    checkpoints: str | None = None
    """Folder in which the rows' checkpoints are looked for, before those that ship and the hub."""
    docs: str | None = None
    """A Markdown page with the mark <!-- methods -->, behind which the table is written."""
    plot: str | None = None
    """Where a figure goes: FAD against milliseconds (.png, .svg, .pdf)."""
    work: str | None = None
    """Folder of generated clips and embeddings; by default beside the results."""
    only: tuple[str, ...] = ()
    """Names of the rows to compute now; the others stay as they are."""
    clips: int = 256
    """Clips in each set."""
    seconds: float = 10.0
    """Length of each clip, and of the piece that is timed."""
    dtype: Literal["fp32", "bf16"] | None = None
    """Of the diffusion model; by default bf16 on CUDA and fp32 on a CPU."""
    device: str | None = None
    """cpu or cuda; by default CUDA where there is one."""
    seed: int = 0
    """Draws clips, noise, generations and resamples."""
    batch: int = 8
    """Clips generated at once."""
    prompts: int = 8
    """Prompts of the diversity across seeds; 0 leaves it out."""
    seeds: int = 8
    """Seeds of each of them."""
    training_clips: int = 400
    """Real training clips the tag classifiers learn from."""
    tags: tuple[str, ...] = ("collection", "instrument")
    """Tags to look for in the generated music."""
    resamples: int = 1000
    """Bootstrap resamples for the intervals."""
    shrinkage: float = 0.0
    """Of FAD's covariances towards a multiple of one; above 0 only where there are too few patches."""
    time_rounds: int = 5
    """Rounds in which all rows are timed at the end; 0 leaves the times as they are."""
    minutes: float | None = None
    """Rows that would start later than this after the beginning are left out, and said to be."""
    table_only: bool = False
    """Make page, figure and table from the results there are, and compute nothing."""
    json: bool = False
    """Print the results as JSON instead of a table."""
