"""What every ``control`` command can be told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from presto_models.ditto.commands.inputs import curve_of, melody_of
from presto_models.ditto.commands.task import Task
from presto_models.ditto.control import Control
from presto_models.ditto.intensity import Intensity
from presto_models.ditto.melody import Melody
from presto_models.ditto.options import DittoOptions
from presto_models.ditto.structure import Structure


@dataclass(frozen=True, kw_only=True)
class ControlOptions(ABC):
    """Music that follows a control, by optimising the noise it starts from."""

    command: ClassVar[str]  # its name on the command line
    own: ClassVar[str] = ""  # which of curve, melody and form is the command's own control

    prompt: str = ""
    """What it should sound like; "" is no text."""
    out: Path = Path("out.wav")
    """The finished piece: .wav, .flac or .ogg; with several candidates out-1.wav, the best, out-2.wav, ..."""
    seed: int | None = None
    """The same seed gives the same music; candidate i has seed + i - 1.  Without it one is drawn, and said."""
    plot: Path | None = None
    """The picture of what was asked for and what was obtained; without it beside --out, as .png."""
    no_plot: bool = False
    """No picture."""
    num_samples: int = 1
    """Candidates, optimised side by side; the best is written first."""
    steps: int = 40
    """Of Adam, at most."""
    learning_rate: float = 0.03
    """Of Adam."""
    threshold: float | None = None
    """An error that is good enough, in the control's own units: the search ends there."""
    weight: float = 1.0
    """Of the command's own control, where there are several."""
    curve: str | None = None
    """Also this loudness over time: a CSV with the header seconds,db, or crescendo, decrescendo or swell."""
    melody: Path | None = None
    """Also this melody: a CSV with the header seconds,note, or an audio file to take it from."""
    form: str | None = None
    """Also this form, as in ABA, or with relative lengths, "A4 B8 A4"."""
    also_weight: float = 1.0
    """Of each control that is there also."""
    sampler: Literal["heun", "dpmpp_2s", "ddim", "pingpong", "ctm"] | None = None
    """Without it ddim, and for a consistency trajectory model its own; ping-pong loses the noise that is found."""
    sampling_steps: int | None = None
    """Steps of the sampler that makes the music; without it 2 for a distilled checkpoint and 20 for any other."""
    surrogate_steps: int | None = None
    """Steps of the sampler that the gradient goes through (DITTO-2); without it all of --sampling-steps (DITTO)."""
    guidance: float | None = None
    """Scale of classifier-free guidance, 1 for none; without it the checkpoint's own."""
    rho: float | None = None
    """Spacing of the noise levels: 7 is Karras', 1000 almost even in ln sigma; without it 1000 for ddim through a
    distilled checkpoint, else the checkpoint's own."""
    full_depth: bool = False
    """Run every block at every step, whatever the checkpoint's layer schedule says."""
    stereo: bool = False
    """Two channels, through the mono-to-stereo module; controls hear the mono before it."""
    tags: tuple[str, ...] = ()
    """field=value, as in mode=minor instrument=flute; a wrong one is answered with those there are."""
    start: Path | None = None
    """A file that --save wrote: begin from the noise found there, of the same length and number of candidates."""
    save: Path | None = None
    """A file that keeps the state of the search as it goes."""
    resume: bool = False
    """Go on from --save where it is there."""
    checkpoint: str = "presto-tiny-ls"
    """One that ships with the package, a folder, or a hub id (owner/name)."""
    device: str | None = None
    """cpu or cuda; without it CUDA where there is one."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Of the transformer; without it bf16 on CUDA and fp32 on a CPU."""
    json: bool = False
    """Say what was done as one line of JSON."""

    @abstractmethod
    def task(self) -> Task:
        """What is asked for, read from its files; ValueError, TypeError or OSError where that cannot be."""

    def asked(self) -> dict[str, Any]:
        """Arguments that every command's own control takes."""
        return {"weight": self.weight, "threshold": self.threshold}

    def also(self, seconds: float) -> list[Control]:
        """The other controls, of so much music."""
        controls: list[Control] = []
        if self.curve is not None and self.own != "curve":
            controls.append(Intensity(curve=curve_of(self.curve, seconds), weight=self.also_weight))
        if self.melody is not None and self.own != "melody":
            controls.append(Melody(**melody_of(self.melody), weight=self.also_weight))
        if self.form is not None and self.own != "form":
            controls.append(Structure(form=self.form, weight=self.also_weight))
        return controls

    def ditto(self) -> DittoOptions:
        """How the optimisation goes."""
        return DittoOptions(
            steps=self.steps,
            learning_rate=self.learning_rate,
            sampler=self.sampler,
            sampling_steps=self.sampling_steps,
            guidance=self.guidance,
            rho=self.rho,
            surrogate_steps=self.surrogate_steps,
            full_depth=self.full_depth,
        )
