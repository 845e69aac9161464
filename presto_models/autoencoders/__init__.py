"""Autoencoders: waveform to latents and back."""

from presto_models.autoencoders.base import Autoencoder
from presto_models.autoencoders.loading import load_autoencoder, save_autoencoder
from presto_models.autoencoders.oobleck import Oobleck
from presto_models.autoencoders.oobleck_config import OobleckConfig
from presto_models.autoencoders.oobleck_files import load_stable_audio_vae
from presto_models.autoencoders.oobleck_weights import oobleck_from_state_dict
from presto_models.autoencoders.spectral import SpectralAutoencoder, SpectralAutoencoderConfig

__all__ = [
    "Autoencoder",
    "Oobleck",
    "OobleckConfig",
    "SpectralAutoencoder",
    "SpectralAutoencoderConfig",
    "load_autoencoder",
    "load_stable_audio_vae",
    "oobleck_from_state_dict",
    "save_autoencoder",
]
