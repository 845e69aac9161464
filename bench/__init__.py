"""What every step and op of Presto costs beside PyTorch. Not installed: run `python -m bench` from a checkout."""
