"""Autoencoders: waveform to latents and back."""

from presto_models.autoencoders.base import Autoencoder
from presto_models.autoencoders.oobleck import Oobleck
from presto_models.autoencoders.oobleck_config import OobleckConfig
from presto_models.autoencoders.oobleck_files import load_stable_audio_vae
from presto_models.autoencoders.oobleck_weights import oobleck_from_state_dict

__all__ = ["Autoencoder", "Oobleck", "OobleckConfig", "load_stable_audio_vae", "oobleck_from_state_dict"]
