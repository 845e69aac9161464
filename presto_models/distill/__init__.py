"""A teacher's 40 steps of all layers to a few steps of fewer: Presto-S, -L and -LS, and what they are measured by.

``python -m presto_models distill METHOD`` runs them; docs/distillation.md says what each computes.
"""

from presto_models.distill.consistency import ConsistencyConfig, ConsistencyModel
from presto_models.distill.dmd import PrestoLS, PrestoS, StepConfig
from presto_models.distill.layers import LayerConfig, PrestoL
from presto_models.distill.task import DistillConfig, DistillTask
from presto_models.distill.teacher import Teacher
from presto_models.distill.trajectory import ConsistencyTrajectoryModel, TrajectoryConfig

__all__ = [
    "ConsistencyConfig",
    "ConsistencyModel",
    "ConsistencyTrajectoryModel",
    "DistillConfig",
    "DistillTask",
    "LayerConfig",
    "PrestoL",
    "PrestoLS",
    "PrestoS",
    "StepConfig",
    "Teacher",
    "TrajectoryConfig",
]
