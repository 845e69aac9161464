"""Autoencoders: waveform to latents and back."""

from presto_models.autoencoders.base import Autoencoder
from presto_models.autoencoders.loading import load_autoencoder, save_autoencoder
from presto_models.autoencoders.spectral import SpectralAutoencoder, SpectralAutoencoderConfig

__all__ = ["Autoencoder", "SpectralAutoencoder", "SpectralAutoencoderConfig", "load_autoencoder", "save_autoencoder"]
