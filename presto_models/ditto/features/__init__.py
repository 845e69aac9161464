"""What controls hear in music: differentiable, on any device, everything that can be computed before is."""

from presto_models.ditto.features.chroma import Chroma
from presto_models.ditto.features.loudness import Loudness
from presto_models.ditto.features.savgol import SavitzkyGolay
from presto_models.ditto.features.spectrum import Spectrum
from presto_models.ditto.features.timbre import SelfSimilarity, Timbre

__all__ = ["Chroma", "Loudness", "SavitzkyGolay", "SelfSimilarity", "Spectrum", "Timbre"]
