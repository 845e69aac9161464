"""Small pipelines for every sampler, and requests for them."""

from functools import cache

from small_models import small_config
from small_pipeline import small_pipeline

from presto_models.diffusion.sampling import Sampling
from presto_models.ditto import DittoOptions

MAKE = {"prompt": "slow organ", "seconds": 0.1, "seed": 3}
SAMPLERS = ("ddim", "heun", "dpmpp_2s", "pingpong", "ctm")


@cache
def pipeline(sampler="heun"):
    """Two blocks, no schedule; of a kind that may be walked by that sampler."""
    if sampler == "ctm":
        sampling = Sampling("ctm", 3, spacing="interval")
        dit = small_config(num_blocks=2, takes_sigma_to=True)
        return small_pipeline(dit=dit, parameterization="ctm", sampling=sampling, schedule=None)
    return small_pipeline(dit=small_config(num_blocks=2), sampler=sampler, schedule=None)


def options(steps=3, **changes):
    return DittoOptions(**({"steps": steps, "learning_rate": 0.05, "sampling_steps": 3} | changes))
