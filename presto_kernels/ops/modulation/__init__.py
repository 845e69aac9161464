"""AdaLN modulation and the seam between two branches of a DiT."""
