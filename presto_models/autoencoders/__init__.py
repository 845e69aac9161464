"""Autoencoders: waveform to latents and back."""

from presto_models.autoencoders.base import Autoencoder

__all__ = ["Autoencoder"]
