"""Autoencoders: waveform to latents and back."""

from presto_models.autoencoders.base import Autoencoder
from presto_models.autoencoders.spectral import SpectralAutoencoder, SpectralAutoencoderConfig

__all__ = ["Autoencoder", "SpectralAutoencoder", "SpectralAutoencoderConfig"]
