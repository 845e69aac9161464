"""The transformers of Hugging Face's diffusers."""
