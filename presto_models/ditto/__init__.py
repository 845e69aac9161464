"""Control at inference: DITTO and DITTO-2 steer a model by the noise it starts from, without training it."""

from presto_models.ditto.control import Bound, Control
from presto_models.ditto.curve import Curve, read_curve
from presto_models.ditto.intensity import Intensity
from presto_models.ditto.melody import Melody
from presto_models.ditto.notes import Notes, read_melody
from presto_models.ditto.options import DittoOptions
from presto_models.ditto.result import Optimized, Outcome
from presto_models.ditto.scene import Made, Scene
from presto_models.ditto.solver import StepReport, optimize
from presto_models.ditto.structure import Structure

__all__ = [
    "Bound",
    "Control",
    "Curve",
    "DittoOptions",
    "Intensity",
    "Made",
    "Melody",
    "Notes",
    "Optimized",
    "Outcome",
    "Scene",
    "StepReport",
    "Structure",
    "optimize",
    "read_curve",
    "read_melody",
]
