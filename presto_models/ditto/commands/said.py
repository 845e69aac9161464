"""What a ``control`` command says it did, as plain values and as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from presto_models.ditto.commands.options import ControlOptions
from presto_models.ditto.result import Optimized
from presto_models.ditto.stitching import Seam
from presto_models.pipeline import PrestoPipeline


def values(
    options: ControlOptions,
    pipeline: PrestoPipeline,
    made: Optimized,
    order: Sequence[int],
    seams: Sequence[Sequence[Seam]],
) -> dict[str, Any]:
    """Everything but files and times, ready for JSON; lists have one entry a candidate, in that order."""

    def each(of: Sequence[Any] | Tensor) -> list[Any]:
        of = of.tolist() if isinstance(of, Tensor) else of
        return [of[index] for index in order]

    ditto, rate = options.ditto().completed(pipeline), made.sample_rate
    return {
        "command": options.command,
        "controls": {
            name: {
                "error": each(outcome.error),
                "before": each(outcome.before),
                "threshold": outcome.threshold,
                "drift": None if ditto.surrogate_steps is None else each(outcome.drift),
                "figures": {figure: each(value) for figure, value in outcome.figures.items()},
            }
            for name, outcome in made.outcomes.items()
        },
        "seams": [
            [{"seconds": seam.at / rate, "correlation": seam.correlation} for seam in of_piece] for of_piece in seams
        ],
        "seeds": each(made.seeds),
        "steps": made.steps,
        "steps_to_threshold": each(made.steps_to_threshold),
        "seconds_per_step": made.seconds_per_step,
        "model_calls": made.model_calls,
        "sampler": ditto.sampler,
        "sampling_steps": ditto.sampling_steps,
        "surrogate_steps": ditto.surrogate_steps,
        "seconds": made.waveform.shape[-1] / rate,
        "sample_rate": rate,
        "checkpoint": options.checkpoint,
        "device": str(pipeline.device),
        "dtype": str(next(pipeline.dit.parameters()).dtype).removeprefix("torch."),
    }


def sentences(said: dict[str, Any]) -> str:
    """The same for a person: a line for each control of each candidate, one on the search, one of files."""
    several = len(said["files"]) > 1
    lines = []
    for place, path in enumerate(said["files"]):
        of = f"{Path(path).name}: " if several else ""
        for name, about in said["controls"].items():
            line = f"{of}{name}: error {about['error'][place]:.4g}, without control {about['before'][place]:.4g}"
            line += "".join(f", {figure} {value[place]:.3g}" for figure, value in about["figures"].items())
            if about["drift"] is not None:
                line += f"; drift between surrogate and music {about['drift'][place]:.3g}"
            lines.append(line)
        if said["seams"][place]:
            where = (
                f"{seam['seconds']:.2f} s (correlation {seam['correlation']:.2f})" for seam in said["seams"][place]
            )
            lines.append(f"{of}seams at {', '.join(where)}")
    each = "" if said["seconds_per_step"] is None else f" of {said['seconds_per_step']:.2f} s"
    reached = [step for step in said["steps_to_threshold"] if step is not None]
    stopped = f", good enough after {', '.join(map(str, reached))}" if reached else ""
    calls, surrogate = f"{said['sampling_steps']} steps of {said['sampler']}", said["surrogate_steps"]
    through = f"DITTO through {calls}" if surrogate is None else f"DITTO-2 through {surrogate} for {calls}"
    lines.append(
        f"{said['steps']} steps{each}{stopped}, {through}; {said['seconds']:.1f} s of music in {said['took_s']:.1f} s "
        f"({said['dtype']} on {said['device']})"
    )
    paths = [*said["files"], *said["parts"], *said["plots"], *([said["save"]] if said["save"] else [])]
    lines.append(f"{', '.join(paths)} (seed {', '.join(map(str, said['seeds']))})")
    return "\n".join(lines)
