"""``python -m presto_models control ...``: the options of each command, and what runs them."""

from presto_models.ditto.commands.features import IntensityOptions, MelodyOptions, StructureOptions, TransferOptions
from presto_models.ditto.commands.painting import InpaintOptions, InvertOptions, LoopOptions, OutpaintOptions
from presto_models.ditto.commands.runner import run

__all__ = [
    "InpaintOptions",
    "IntensityOptions",
    "InvertOptions",
    "LoopOptions",
    "MelodyOptions",
    "OutpaintOptions",
    "StructureOptions",
    "TransferOptions",
    "run",
]
