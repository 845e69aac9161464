"""What DITTO is compared with, on the same models and controls."""

from presto_models.ditto.baselines.doodl import DoodlSettings, doodl
from presto_models.ditto.baselines.edict import Edict

__all__ = ["DoodlSettings", "Edict", "doodl"]
