"""Oobleck's weights from other projects: diffusers and stable-audio-tools."""
