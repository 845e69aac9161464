"""What a run tells: a progress bar or lines, metrics.jsonl, TensorBoard, a picture of the curves, samples."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from presto_models.training.run_folder import write_text
from presto_models.training.task import Samples

CURVES_SECONDS = 60.0
LINE_SECONDS = 10.0


class Journal:
    """The first process's record of a run, from ``start`` on; what a killed run had logged behind it goes.

    ``metrics.jsonl`` holds a line per record: {"step", "seconds", and names to numbers}.
    """

    def __init__(self, folder: Path, *, task: str, start: int, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.console = folder, Console(highlight=False)
        self._metrics = folder / "metrics.jsonl"
        self.records = [r for r in self._read() if r["step"] <= start]
        write_text(self._metrics, "".join(json.dumps(record) + "\n" for record in self.records))
        self._board = SummaryWriter(str(folder), purge_step=start + 1)
        self._before = self.records[-1]["seconds"] if self.records else 0.0
        self._started = self._timed = time.perf_counter()
        self._timed_step, self._curves_at, self._said = start, 0.0, 0.0
        columns = ("{task.description}", BarColumn(), "{task.completed}/{task.total}", TimeElapsedColumn())
        parts = [TextColumn(c) if isinstance(c, str) else c for c in columns]
        self._progress = Progress(
            *parts, TimeRemainingColumn(), TextColumn("{task.fields[text]}"), console=self.console, transient=True
        )
        self._bar = self._progress.add_task(task, total=steps, completed=start, text="")
        self._steps = steps

    def __enter__(self) -> Journal:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self.curves()
        self._board.close()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """``step`` steps are done."""
        self._progress.update(self._bar, completed=step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at ``step``, with the speed since the last call."""
        now = time.perf_counter()
        speed = (step - self._timed_step) / (now - self._timed) if step > self._timed_step else 0.0
        self._timed, self._timed_step = now, step
        self._write(step, {**values, "steps_per_second": speed} if speed else values)
        left = (self._steps - step) / speed if speed else 0.0
        text = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        text += f" {speed:.3g} steps/s" if speed else ""
        self._progress.update(self._bar, completed=step, text=text)
        if not self.console.is_terminal and now - self._said > LINE_SECONDS:
            self._said = now
            self.say(f"step {step}/{self._steps}: {text}, {_duration(left)} left")

    def validated(self, step: int, values: Mapping[str, float]) -> None:
        """Validation's numbers; the time they took is not held against the speed."""
        self._write(step, {f"validation/{name}": value for name, value in values.items()})
        self.say(f"step {step} validation: " + " ".join(f"{name} {value:.5g}" for name, value in values.items()))

    def resume_clock(self) -> None:
        """Something beside training took time: the speed counts from here."""
        self._timed = time.perf_counter()

    def samples(self, step: int, samples: Samples) -> None:
        """Audio as .wav under samples/, and audio and images to TensorBoard."""
        import soundfile

        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        for name, audio in samples.audio.items():
            wave = audio.float().clamp(-1, 1)
            soundfile.write(folder / f"{name}-{step:08d}.wav", wave.T.numpy(), samples.sample_rate)
            self._board.add_audio(name, wave.mean(0, keepdim=True), step, sample_rate=samples.sample_rate)
        for name, image in samples.images.items():
            self._board.add_image(name, image, step)

    def curves(self) -> None:
        """curves.png: every training number over the steps with its validation beside it."""
        from matplotlib.figure import Figure

        names = sorted({n for r in self.records for n in r} - {"step", "seconds", "steps_per_second", "learning_rate"})
        bases = sorted({name.removeprefix("validation/") for name in names})
        if not bases:
            return
        columns = min(3, len(bases))
        figure = Figure(figsize=(5 * columns, 3.2 * math.ceil(len(bases) / columns)), layout="constrained")
        for index, base in enumerate(bases):
            axes = figure.add_subplot(math.ceil(len(bases) / columns), columns, index + 1)
            for name, label in ((base, "training"), (f"validation/{base}", "validation")):
                points = [(r["step"], r[name]) for r in self.records if name in r]
                if points:
                    axes.plot(*zip(*points, strict=True), label=label, linewidth=1, alpha=0.8)
            axes.set_title(base)
            axes.set_xlabel("step")
            axes.grid(alpha=0.3)
            axes.legend()
        beside = self.folder / ".curves.png"
        figure.savefig(beside, dpi=110)
        beside.replace(self.folder / "curves.png")

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        seconds = self._before + time.perf_counter() - self._started
        record: dict[str, Any] = {"step": step, "seconds": round(seconds, 2), **values}
        self.records.append(record)
        with self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if time.perf_counter() - self._curves_at > CURVES_SECONDS:
            self.curves()
            self._curves_at = time.perf_counter()

    def _read(self) -> list[dict[str, Any]]:
        """The records there are; a last line cut short by a kill is left out."""
        if not self._metrics.is_file():
            return []
        records = []
        for line in self._metrics.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {int(seconds % 60)} s"
