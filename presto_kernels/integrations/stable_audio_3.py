"""Stable Audio 3 (github.com/Stability-AI/stable-audio-3): its DiT, and the transformers of the SAME decoders."""

from presto_kernels.integrations.stability.swaps import Codebase

SWAPS = Codebase("stable_audio_3").swaps()
