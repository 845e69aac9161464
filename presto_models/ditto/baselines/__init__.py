"""What DITTO is compared with, on the same models and controls."""

from presto_models.ditto.baselines.direct import DoodlSettings, doodl
from presto_models.ditto.baselines.edict import Edict
from presto_models.ditto.baselines.energy import FreeDoMSettings, freedom
from presto_models.ditto.baselines.gradients import GuidanceGradientsSettings, guidance_gradients
from presto_models.ditto.baselines.masking import MultiDiffusionSettings, multidiffusion, naive_masking

__all__ = [
    "DoodlSettings",
    "Edict",
    "FreeDoMSettings",
    "GuidanceGradientsSettings",
    "MultiDiffusionSettings",
    "doodl",
    "freedom",
    "guidance_gradients",
    "multidiffusion",
    "naive_masking",
]
