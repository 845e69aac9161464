"""A General MIDI SoundFont played to stereo float32 with tinysoundfont."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from presto_models.data.arrangement import Arrangement

SAMPLE_RATE = 44_100
LOUDNESS = 10 ** (-20 / 20)  # RMS of a clip against full scale
PEAK = 0.95
_NAMES = ("FluidR3_GM.sf2", "default-GM.sf2")
_FOLDERS = (
    "/usr/share/sounds/sf2",
    "/usr/share/soundfonts",
    "/usr/local/share/soundfonts",
    "/opt/homebrew/share/soundfonts",
)
_ALL_SOUND_OFF, _RESET, _PAN = 120, 121, 10
_logger = logging.getLogger(__name__)


def find_soundfont(path: str | None = None) -> Path:
    """`path`, else FluidR3 in the usual system folders, else pretty_midi's own TimGM6mb, saying that it is nearly mono.

    Raises FileNotFoundError where `path` does not exist or no SoundFont is found.
    """
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"soundfont: there is no file {path}")
        return Path(path)
    for name in _NAMES:
        for folder in _FOLDERS:
            if (Path(folder) / name).is_file():
                return Path(folder) / name
    try:
        import pretty_midi
    except ImportError:
        found = None
    else:
        found = Path(pretty_midi.__file__).with_name("TimGM6mb.sf2")
    if found is None or not found.is_file():
        raise FileNotFoundError(
            f"soundfont: no {_NAMES[0]} in {', '.join(_FOLDERS)}; install fluid-soundfont-gm or name one"
        )
    _logger.warning("no %s found: using %s, whose sound is nearly mono", _NAMES[0], found.name)
    return found


class Player:
    """Loads a SoundFont once (some 0.3 s and 0.5 GB for FluidR3) and plays arrangements with it."""

    def __init__(self, soundfont: Path):
        try:
            import tinysoundfont
        except ImportError as error:
            raise ImportError("rendering needs tinysoundfont: pip install --no-deps tinysoundfont") from error
        self.synth = tinysoundfont.Synth(samplerate=SAMPLE_RATE, gain=0)
        self.font = self.synth.sfload(str(soundfont))

    def play(self, arrangement: Arrangement) -> np.ndarray:
        """`[samples, 2]` float32 at -20 dB RMS, less where a peak would pass 0.95; ValueError where it is silent."""
        synth = self.synth
        for channel in range(16):
            synth.control_change(channel, _RESET, 0)
            synth.control_change(channel, _ALL_SOUND_OFF, 0)
        synth.generate(4096)  # voices that are switched off still fade for 10 ms
        # Channel 9 is for drums in General MIDI.
        channels = [channel for channel in range(16) if channel != 9][: len(arrangement.programs)]
        for channel, program, pan in zip(channels, arrangement.programs, arrangement.pans, strict=True):
            synth.program_select(channel, self.font, 0, program)
            synth.control_change(channel, _PAN, pan)
        total = round(arrangement.seconds * SAMPLE_RATE)
        blocks, done = [], 0
        for seconds, part, pitch, velocity in [*arrangement.events, (arrangement.seconds, 0, 0, 0)]:
            upto = min(total, round(seconds * SAMPLE_RATE))
            if upto > done:
                blocks.append(np.frombuffer(bytes(synth.generate(upto - done)), dtype=np.float32).reshape(-1, 2))
                done = upto
            if velocity:
                synth.noteon(channels[part], pitch, velocity)
            elif pitch:
                synth.noteoff(channels[part], pitch)
        sound = np.concatenate(blocks)
        fade = min(len(sound), round(0.03 * SAMPLE_RATE))
        sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)[:, None]
        level, peak = float(np.sqrt(np.mean(sound.astype(np.float64) ** 2))), float(np.abs(sound).max())
        if level < 1e-5:
            raise ValueError("silent")
        return np.asarray(sound * np.float32(min(LOUDNESS / level, PEAK / peak)), dtype=np.float32)
