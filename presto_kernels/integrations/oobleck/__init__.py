"""Oobleck, Stable Audio's autoencoder, as diffusers and stable-audio-tools define it."""
