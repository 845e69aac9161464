"""How music is measured: distances between sets of clips, tags heard, and how well audio is reconstructed."""

from presto_models.metrics.agreement import Agreement, TagClassifier, tag_agreement
from presto_models.metrics.audio import log_spectral_distance, mel_distance, si_sdr, stft_distance
from presto_models.metrics.embedded import EmbeddedClips, Interval
from presto_models.metrics.frechet import frechet_audio_distance, frechet_distance
from presto_models.metrics.mmd import MMD, GaussianKernel, PolynomialKernel, median_bandwidth, mmd2
from presto_models.metrics.musicnn import MusicNN
from presto_models.metrics.noise import average_spectrum, shaped_noise
from presto_models.metrics.recall import density_and_coverage

__all__ = [
    "Agreement",
    "EmbeddedClips",
    "GaussianKernel",
    "Interval",
    "MMD",
    "MusicNN",
    "PolynomialKernel",
    "TagClassifier",
    "average_spectrum",
    "density_and_coverage",
    "frechet_audio_distance",
    "frechet_distance",
    "log_spectral_distance",
    "median_bandwidth",
    "mel_distance",
    "mmd2",
    "shaped_noise",
    "si_sdr",
    "stft_distance",
    "tag_agreement",
]
