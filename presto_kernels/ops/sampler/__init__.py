"""The steps of a sampler: EDM's preconditioned denoiser, and noise that a seed and a counter determine."""
