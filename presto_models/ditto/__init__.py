"""Control at inference: DITTO and DITTO-2 steer a model by the noise it starts from, without training it."""

from presto_models.ditto.baselines.doodl import DoodlSettings, doodl
from presto_models.ditto.baselines.edict import Edict
from presto_models.ditto.control import Bound, Control
from presto_models.ditto.options import DittoOptions
from presto_models.ditto.result import Optimized, Outcome
from presto_models.ditto.scene import Made, Scene
from presto_models.ditto.solver import StepReport, optimize

__all__ = [
    "Bound",
    "Control",
    "DittoOptions",
    "DoodlSettings",
    "Edict",
    "Made",
    "Optimized",
    "Outcome",
    "Scene",
    "StepReport",
    "doodl",
    "optimize",
]
