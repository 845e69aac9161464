"""Music to train on: public-domain scores rendered to audio, folders of audio with captions, and their latents."""
