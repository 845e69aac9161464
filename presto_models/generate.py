"""``python -m presto_models generate``: music from a prompt, to audio files."""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from presto_models.checkpoint import DEFAULT_CHECKPOINT
from presto_models.outputs import DTYPES, audio_path, check_finite, check_writable, numbered, within_full_scale
from presto_models.pipeline import Generated, PrestoPipeline
from presto_models.plots import check_plot_path, plot_audio


@dataclass(frozen=True)
class GenerateOptions:
    """Music from a prompt."""

    prompt: str
    """What it should sound like; "" is no text."""
    out: Path = Path("out.wav")
    """The audio file: .wav, .flac or .ogg; with several samples out-1.wav, out-2.wav, ..."""
    seconds: float = 32.0
    """How long it is."""
    seed: int | None = None
    """The same seed gives the same music; sample i has seed + i - 1.  Without it one is drawn, and said."""
    stereo: bool = False
    """Two channels, through the mono-to-stereo module."""
    plot: Path | None = None
    """Also a picture of the waveform and the mel spectrogram: .png, .pdf or .svg."""
    steps: int | None = None
    """Steps of the sampler, for a distilled checkpoint 1, 2, 4 or 8; without it the checkpoint's own."""
    guidance: float | None = None
    """Scale of classifier-free guidance, 1 for none; without it the checkpoint's own."""
    sampler: Literal["heun", "dpmpp_2s", "ddim", "pingpong", "ctm"] | None = None
    """Without it the checkpoint's own."""
    rho: float | None = None
    """Spacing of the noise levels: 7 is Karras', 1000 almost even in ln sigma; without it the checkpoint's own."""
    full_depth: bool = False
    """Run every block at every step, whatever the checkpoint's layer schedule says."""
    num_samples: int = 1
    """Variations."""
    tags: tuple[str, ...] = ()
    """field=value, as in mode=minor instrument=flute; a wrong one is answered with those there are."""
    checkpoint: str = DEFAULT_CHECKPOINT
    """One that ships with the package, a folder, or a hub id (owner/name)."""
    device: str | None = None
    """cpu or cuda; without it CUDA where there is one."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Of the transformer; without it bf16 on CUDA and fp32 on a CPU."""
    json: bool = False
    """Say what was done as one line of JSON."""


def run(options: GenerateOptions) -> int:
    """Generates, writes and says what it did; the exit status.

    Raises:
        ValueError, TypeError, OSError, ImportError: what a person can act on; before anything is computed where that
        can be known, and never with half a file left behind.
    """
    if options.num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {options.num_samples}")
    files = numbered(audio_path(options.out), options.num_samples)
    plots = [] if options.plot is None else numbered(check_plot_path(options.plot), options.num_samples)
    for path in (*files, *plots):
        check_writable(path)
    from rich.console import Console

    from presto_models.data.audio_files import write_audio
    from presto_models.text import parse_tags

    tags = parse_tags(options.tags) or None
    console = Console(stderr=True)
    started = time.perf_counter()
    with console.status(f"loading {options.checkpoint} ..."):
        dtype = None if options.dtype is None else DTYPES[options.dtype]
        pipeline = PrestoPipeline.from_pretrained(options.checkpoint, device=options.device, dtype=dtype)
    pipeline.engine.capture = False  # for one call: capturing a graph takes longer than what it then saves
    loaded = time.perf_counter()
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        made = pipeline(
            options.prompt,
            seconds=options.seconds,
            steps=options.steps,
            guidance=options.guidance,
            seed=options.seed,
            stereo=options.stereo,
            num_samples=options.num_samples,
            tags=tags,
            sampler=options.sampler,
            rho=options.rho,
            schedule=None if options.full_depth else "own",
            progress=not options.json,
            timings=options.json,
        )
        waveform = made.waveform.cpu()  # waits for the device
    took = time.perf_counter() - loaded
    for note in notes:
        print(f"note: {note.message}", file=sys.stderr)
    check_finite(waveform)
    for index, (path, audio) in enumerate(zip(files, waveform, strict=True)):
        audio = within_full_scale(audio, path)
        write_audio(path, audio, made.sample_rate)
        if plots:
            title = f"{options.prompt}  (seed {made.seeds[index]})".replace("$", r"\$")  # no mathematics in a prompt
            plot_audio(audio, made.sample_rate, plots[index], title=title)
    _say(options, pipeline, made, files, plots, load=loaded - started, took=took)
    return 0


def _say(
    options: GenerateOptions,
    pipeline: PrestoPipeline,
    made: Generated,
    files: list[Path],
    plots: list[Path],
    *,
    load: float,
    took: float,
) -> None:
    count, channels, samples = made.waveform.shape
    seconds = samples / made.sample_rate
    dtype = str(next(pipeline.dit.parameters()).dtype).removeprefix("torch.")
    if options.json:
        values = {
            "files": [str(path) for path in files],
            "plots": [str(path) for path in plots],
            "seeds": list(made.seeds),
            "seconds": seconds,
            "channels": channels,
            "sample_rate": made.sample_rate,
            "model_calls": made.model_calls,
            "load_s": round(load, 4),
            "took_s": round(took, 4),
            "stages_s": None if made.timings is None else asdict(made.timings),
            "times_real_time": round(count * seconds / took, 3),
            "checkpoint": options.checkpoint,
            "device": str(pipeline.device),
            "dtype": dtype,
        }
        print(json.dumps(values))
        return
    what = f"{seconds:.1f} s of {'stereo' if channels == 2 else 'mono'}"
    what = what if count == 1 else f"{count} x {what}"
    print(
        f"{what} in {took:.2f} s, {count * seconds / took:.1f} times real time "
        f"({made.model_calls} model calls, {dtype} on {pipeline.device})"
    )
    seeds = ", ".join(map(str, made.seeds))
    print(f"{', '.join(map(str, (*files, *plots)))} (seed {seeds})")
