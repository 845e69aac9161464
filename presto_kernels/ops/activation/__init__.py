"""Gated activations of a DiT's feed-forward, and the Snake activation of an audio decoder."""
