"""stable-audio-tools (Stable Audio Open): its transformers.

Without flash-attn it prints that it cannot do a sliding window and attends to everything.
"""

from presto_kernels.integrations.stability.attention import FusedAttention
from presto_kernels.integrations.stability.swaps import Codebase


class ToolsAttention(FusedAttention):
    window_needs_flash = True


SWAPS = Codebase("stable_audio_tools", ToolsAttention).swaps()
