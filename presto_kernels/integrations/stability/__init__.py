"""The transformers of Stability AI: stable-audio-tools and Stable Audio 3 share their classes' names and ways."""
