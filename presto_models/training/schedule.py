"""The learning rate as a function of the step."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, *, steps: int, warmup: int, schedule: str, decay: int, floor: float) -> float:
    """What the peak learning rate is multiplied with at ``step`` (0 .. steps - 1).

    It rises over the first ``warmup`` steps as (step + 1) / warmup.  Then ``schedule="cosine"`` falls to ``floor`` at
    the last step; ``"constant"`` stays at 1 and falls over the last ``decay`` steps as 1 - sqrt(t), t from 0 to 1, down
    to ``floor`` (Haegele et al. 2024, 2405.18392: as good as a cosine, and the run's length may be chosen late).
    """
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "cosine":
        t = min(1.0, max(0.0, (step - warmup) / max(1, steps - 1 - warmup)))
        return rising * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t)))
    t = min(1.0, max(0.0, (step - (steps - decay) + 1) / decay)) if decay else 0.0
    return rising * (floor + (1 - floor) * (1 - math.sqrt(t)))
