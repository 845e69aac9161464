"""What DITTO is compared with, on the same models and controls: ways to steer a walk while it is made."""

from presto_models.ditto.baselines.energy import FreeDoMSettings, freedom
from presto_models.ditto.baselines.gradients import GuidanceGradientsSettings, guidance_gradients
from presto_models.ditto.baselines.masking import MultiDiffusionSettings, multidiffusion, naive_masking

__all__ = [
    "FreeDoMSettings",
    "GuidanceGradientsSettings",
    "MultiDiffusionSettings",
    "freedom",
    "guidance_gradients",
    "multidiffusion",
    "naive_masking",
]
