"""One run of a row: the clip, the control, the call, and what it took."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from presto_models.ditto import DittoOptions
from presto_models.memory import Meter, give_back
from presto_models.metrics.clips import Clip
from presto_models.metrics.control.rows import Row
from presto_models.metrics.control.runs import Run
from presto_models.metrics.provenance import device_name, digest, file_sha256
from presto_models.pipeline import PrestoPipeline

_DTYPES = {"": None, "fp32": torch.float32, "bf16": torch.bfloat16}


class Stage(Protocol):
    """Finds and loads checkpoints: :class:`presto_models.metrics.players.Checkpoints`."""

    device: torch.device

    def weights(self, name: str) -> dict[str, str]: ...

    def load(self, name: str, dtype: torch.dtype | None = None) -> PrestoPipeline: ...

    def find(self, name: str) -> Path: ...


class Making:
    """Makes runs of rows, whose checkpoints and adaptors it keeps.

    Args:
        data: the folder the clips are of.
        seconds: of the music.  seed: of run 0.
    """

    def __init__(self, stage: Stage, clips: list[Clip], data: str, *, seconds: float, seed: int) -> None:
        self.stage, self.clips, self.data = stage, clips, Path(data)
        self.seconds, self.seed = seconds, seed
        self.meter = Meter(stage.device)
        self._adaptors: dict[str, Any] = {}
        self._warm: set[str] = set()
        self._said = [self._described(clip) for clip in clips]

    def weights(self, row: Row) -> dict[str, str]:
        """What tells what the row is made with from anything else.

        Raises:
            FileNotFoundError: no such checkpoint or adaptor.
        """
        weights = self.stage.weights(row.checkpoint)
        return weights | {"adaptor": self._adaptor_sha256(row.adaptor)} if row.adaptor else weights

    def key(self, row: Row, weights: dict[str, str], number: int) -> str:
        """Of a run: another where anything that decides the music is another."""
        same = [row.decides(), weights, self.seconds, self.seed + number, self.stage.device.type]
        return digest([*same, self._said[number]])

    def run(self, row: Row, number: int, key: str) -> tuple[Run, Tensor, int]:
        """The run, its sound ``[channels, T]`` and the sample rate.

        Raises:
            TypeError, ValueError, ArithmeticError, torch.OutOfMemoryError: this method cannot do it.
        """
        pipeline = self.stage.load(row.checkpoint, _DTYPES[row.dtype])
        clip, rate = self.clips[number], pipeline.sample_rate
        threshold = row.asked.threshold if row.stop else None
        control = row.asked.control(clip.read(rate), rate, number, threshold)

        def made(options: DittoOptions) -> Any:
            return row.how.call(
                pipeline,
                control,
                prompt=clip.caption,
                seconds=self.seconds,
                seed=self.seed + number,
                options=options,
                **row.arguments(),
                **self._adaptor(row),
            )

        if row.id not in self._warm:  # the first call of a process also loads, plans and allocates for those to come
            made(replace(row.options(), steps=1))
            self._warm.add(row.id)
        give_back()
        held, counts = self.meter.held(), self.meter.reset()
        wall, busy = time.perf_counter(), time.process_time()
        found = made(row.options())
        busy, wall = time.process_time() - busy, time.perf_counter() - wall
        # On a CPU the processor's time: what else runs there, other shards of this table too, does not count.  Several
        # threads' times add up to more than passed, and then what passed is told.
        share = min(1.0, busy / wall) if self.stage.device.type == "cpu" else 1.0
        memory = max(0, self.meter.peak() - held) if counts else None
        (outcome,) = found.outcomes.values()
        audio, figures = row.asked.finished(pipeline, control, found)
        figures = {name: float(value) for name, value in outcome.figures.items()} | figures
        done = Run(
            key=key,
            number=number,
            seed=self.seed + number,
            caption=clip.caption,
            piece=clip.piece,
            error=float(outcome.error),
            before=float(outcome.before),
            drift=float(outcome.drift),
            figures=figures,
            history=outcome.history[:, 0].tolist(),
            seconds_per_step=None if found.seconds_per_step is None else share * found.seconds_per_step,
            seconds=share * found.seconds,
            memory=memory,
            made_on={"device": device_name(self.stage.device), "torch": torch.__version__},
        )
        if not torch.tensor([done.error, done.before]).isfinite().all() or not audio.isfinite().all():
            raise ArithmeticError(f"the music or its error is not finite: {done.error}")
        return done, audio.cpu(), rate

    def _adaptor_sha256(self, name: str) -> str:
        from presto_models.ditto.adaptor.model import FILE

        path = self.stage.find(name)
        return file_sha256(path / FILE if path.is_dir() else path)

    def _adaptor(self, row: Row) -> dict[str, Any]:
        if not row.adaptor:
            return {}
        if row.adaptor not in self._adaptors:
            from presto_models.ditto.adaptor import load_adaptor

            self._adaptors[row.adaptor] = load_adaptor(self.stage.find(row.adaptor), device=self.stage.device)
        return {"adaptor": self._adaptors[row.adaptor]}

    def _described(self, clip: Clip) -> list[Any]:
        """What tells a clip from another, wherever the folder stands."""
        name = clip.path.relative_to(self.data).as_posix()
        return [name, clip.path.stat().st_size, clip.start, clip.seconds, clip.caption]
