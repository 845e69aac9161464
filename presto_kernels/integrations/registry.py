"""Every class that we know, by its name."""

from presto_kernels.integrations import diffusers, stable_audio_3, stable_audio_tools
from presto_kernels.integrations.oobleck import swaps as oobleck
from presto_kernels.integrations.swapping import Swap

_ALL: tuple[Swap, ...] = (*diffusers.SWAPS, *stable_audio_3.SWAPS, *stable_audio_tools.SWAPS, *oobleck.SWAPS)
SWAPS: dict[str, Swap] = {swap.target: swap for swap in _ALL}
